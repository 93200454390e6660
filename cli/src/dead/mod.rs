//! `windrow dead`: messages nobody could handle, looked at, sent back, or dropped.

pub(crate) mod args;
mod letter;
mod parking;

use windrow_common::broker::{Delivery, Queue, Target};

use self::args::{DeadAction, DeadArgs, DeadListArgs, DeadSelection, DeadShowArgs};
use self::letter::Letter;
use self::parking::Parking;
use crate::Failure;
use crate::output::{counted, print, tell, write};

/// Letters that a command which looks for one goes through, at most: all of them are in memory for a moment.
const LOOKED_THROUGH: u16 = 1_000;

/// Letters in hand while all of them are sent back or dropped.
const IN_HAND: u16 = 100;

/// Lists, shows, sends back or drops.
pub(crate) async fn dead(arguments: &DeadArgs) -> Result<(), Failure> {
    match &arguments.action {
        DeadAction::List(arguments) => list(arguments).await,
        DeadAction::Show(arguments) => show(arguments).await,
        DeadAction::Replay(selection) => replay(selection).await,
        DeadAction::Drop(selection) => discard(selection).await,
    }
}

async fn list(arguments: &DeadListArgs) -> Result<(), Failure> {
    let mut parking = Parking::open(&arguments.place, arguments.limit).await?;
    let mut listed = 0;
    while let Some(delivery) = parking.next().await {
        listed += 1;
        let letter = Letter::of(listed, &delivery.message);
        if !arguments.json && listed == 1 {
            print(Letter::heading())?;
        }
        print(if arguments.json { letter.json().to_string() } else { letter.line() })?;
    }
    if !arguments.json {
        tell(match parking.at_start() {
            0 => "no dead letters".to_owned(),
            all if all == listed => counted(all, "dead letter"),
            all => format!("{listed} of {}", counted(all, "dead letter")),
        });
    }
    parking.close().await;
    Ok(())
}

async fn show(arguments: &DeadShowArgs) -> Result<(), Failure> {
    let mut parking = Parking::open(&arguments.place, LOOKED_THROUGH).await?;
    let mut position = 0;
    let found = loop {
        let Some(delivery) = parking.next().await else { break None };
        position += 1;
        let letter = Letter::of(position, &delivery.message);
        if letter.id() == arguments.letter || position.to_string() == arguments.letter {
            break Some(letter);
        }
    };
    parking.close().await;
    match found {
        None => Err(not_found(std::slice::from_ref(&arguments.letter), position)),
        Some(letter) if arguments.body => write(&letter.body()),
        Some(letter) if arguments.json => print(serde_json::to_string_pretty(&letter.json())?),
        Some(letter) => print(letter.shown()),
    }
}

async fn replay(selection: &DeadSelection) -> Result<(), Failure> {
    let mut parking = open_for(selection).await?;
    let mut chosen = Chosen::new(selection);
    let mut ensured: Vec<Queue> = Vec::new();
    while let Some(delivery) = chosen.next(&mut parking).await {
        let letter = Letter::of(chosen.seen, &delivery.message);
        let original = match letter.original() {
            Ok(original) => original,
            Err(reason) => {
                chosen.refused(&letter, &reason);
                continue;
            }
        };
        if let Target::Queue(queue) = &original.target
            && !ensured.contains(queue)
        {
            parking.broker().ensure(queue).await?;
            ensured.push(queue.clone());
        }
        match parking.settle(delivery, vec![original]).await {
            Ok(()) => chosen.done(&letter),
            Err(error) => chosen.refused(&letter, &error.to_string()),
        }
        if let Some(items) = letter.failed_items() {
            tell(format_args!(
                "{}: {} ended as failed when it was parked; sent back, what they do now counts as a duplicate or \
                 as late",
                letter.id(),
                counted(items, "item")
            ));
        }
    }
    parking.close().await;
    chosen.finish("sent back")
}

async fn discard(selection: &DeadSelection) -> Result<(), Failure> {
    let mut parking = open_for(selection).await?;
    let mut chosen = Chosen::new(selection);
    while let Some(delivery) = chosen.next(&mut parking).await {
        let letter = Letter::of(chosen.seen, &delivery.message);
        match parking.settle(delivery, Vec::new()).await {
            Ok(()) => chosen.done(&letter),
            Err(error) => chosen.refused(&letter, &error.to_string()),
        }
    }
    parking.close().await;
    chosen.finish("dropped")
}

async fn open_for(selection: &DeadSelection) -> Result<Parking, Failure> {
    Parking::open(&selection.place, if selection.all { IN_HAND } else { LOOKED_THROUGH }).await
}

/// The letters a command was told to act on, and what became of them.
struct Chosen<'a> {
    selection: &'a DeadSelection,
    /// Letters gone through.
    seen: u64,
    done: u64,
    refused: u64,
    missing: Vec<String>,
}

impl<'a> Chosen<'a> {
    fn new(selection: &'a DeadSelection) -> Self {
        Self { selection, seen: 0, done: 0, refused: 0, missing: selection.letters.clone() }
    }

    /// The next letter to act on. Equal letters have the same id: all of them are meant.
    async fn next(&mut self, parking: &mut Parking) -> Option<Delivery> {
        loop {
            let delivery = parking.next().await?;
            self.seen += 1;
            let id = Letter::of(self.seen, &delivery.message).id().to_owned();
            if self.selection.all || self.selection.letters.contains(&id) {
                self.missing.retain(|missing| *missing != id);
                return Some(delivery);
            }
        }
    }

    fn done(&mut self, letter: &Letter) {
        tracing::debug!(letter = letter.id(), "settled a dead letter");
        self.done += 1;
    }

    fn refused(&mut self, letter: &Letter, reason: &str) {
        self.refused += 1;
        tell(format_args!("{}: {reason}", letter.id()));
    }

    fn finish(self, what: &str) -> Result<(), Failure> {
        print(format_args!("{what}: {}", counted(self.done, "dead letter")))?;
        if !self.missing.is_empty() {
            return Err(not_found(&self.missing, self.seen));
        }
        if self.refused > 0 {
            return Err(Failure::from(format!("left where it is: {}", counted(self.refused, "dead letter"))));
        }
        Ok(())
    }
}

fn not_found(letters: &[String], seen: u64) -> Failure {
    let among = counted(seen, "dead letter");
    Failure::from(format!("{} is not among {among}; `windrow dead list` has their ids", letters.join(", ")))
}
