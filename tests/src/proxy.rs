//! A way to a server that can be cut, while both ends live on.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections of loopback on to a server. It ends with its process.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts one to a port of loopback, on a thread of its own.
    pub fn start(port: u16) -> Self {
        let cuts = watch::Sender::new(0);
        let seen = cuts.subscribe();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (near, _) = listener.accept().await.unwrap();
                    tokio::spawn(pass_on(near, port, seen.clone()));
                }
            });
        });
        Self { address: receiver.recv().unwrap(), cuts }
    }

    /// Cuts every connection there is. New ones are passed on.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn pass_on(mut near: TcpStream, port: u16, mut cuts: watch::Receiver<u64>) {
    cuts.mark_unchanged();
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        // Either end has closed, or failed: the other is told by the drop.
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = cuts.changed() => {}
    }
}
