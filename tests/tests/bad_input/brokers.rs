//! Brokers that are not there, refuse us, or go away and come back.

use std::time::{Duration, Instant};

use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::process::wait_until;
use windrow_tests::rabbitmq_server::{PASSWORD, RabbitMqServer, USER};

use super::{ECHO, assert_complete, calling, numbered};

#[test]
fn a_broker_that_is_not_there_is_an_error_within_the_time_given() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(10));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uri = format!("amqp://{USER}:{PASSWORD}@{free}/%2f?connect_timeout=2");
    let started = Instant::now();
    let remedy = "is it running, and are host and port right?";
    desk.windrow(&["run", "job.toml", "--broker", &uri]).ended(1, &[&free.to_string(), "refused", remedy]);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    // The mistake of a password that is not encoded: no part of it is repeated.
    let broken = format!("amqp://{USER}:p/{PASSWORD}@{free}/%2f");
    desk.windrow(&["run", "job.toml", "--broker", &broken]).ended(2, &["--broker", "%2F"]);
    // Something listens that is no broker.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::io::Write::write_all(&mut stream.unwrap(), b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        }
    });
    let uri = format!("amqp://{USER}:{PASSWORD}@{address}/%2f?connect_timeout=2");
    desk.windrow(&["run", "job.toml", "--broker", &uri]).ended(1, &[&address.to_string()]);
    assert!(!desk.path("out.jsonl").exists());
}

#[test]
fn a_rabbitmq_that_refuses_takes_rubbish_or_dies_costs_no_item() {
    let mut server = RabbitMqServer::start_blocking();
    refusals(&server);
    super::rubbish::on_every_queue(&server);
    a_death_in_mid_run(&mut server);
}

fn refusals(server: &RabbitMqServer) {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(10));
    let run = |uri: &str| desk.windrow(&["run", "job.toml", "--broker", uri]);
    let wrong = server.uri_as(USER, "not-the-password");
    let said = run(&wrong).ended(1, &[USER, "password"]);
    assert!(!said.err.contains("not-the-password"), "{said}");
    run(&server.uri_as("nobody", PASSWORD)).ended(1, &["nobody"]);
    run(&server.uri().replace("/%2f", "/nowhere")).ended(1, &["`nowhere`", "does it exist"]);
    // With everything right, the same folder works.
    run(&server.uri()).ended(0, &[]);
    assert_complete(&desk, 10);
    let said = desk.windrow(&["topology", "show", "--jobs", ".", "--broker", &server.uri()]).ended(0, &[]);
    assert!(said.out.contains("completion"), "{said}");
}

fn a_death_in_mid_run(server: &mut RabbitMqServer) {
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let desk = Desk::new(&calling(&destination.url()));
    desk.write("items.jsonl", numbered(2_000));
    let mut running = desk.start(&["run", "job.toml", "--broker", &server.uri()]);
    // The broker writes its list of quorum queues to disk each half second; one made since comes back without a
    // leader (seen on 3.10.8). 800 calls take two seconds.
    wait_until("items are called", Duration::from_secs(60), || destination.call_count() >= 800);
    server.kill9().unwrap();
    running.wait_for("the broker is gone");
    assert!(running.is_running() && destination.call_count() < 2_000, "{}", running.err());
    server.restart_blocking();
    running.wait().ended(0, &[]);
    assert_complete(&desk, 2_000);
}
