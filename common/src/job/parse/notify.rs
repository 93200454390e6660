//! `[notify]`.

use super::keys::{self, NO_TYPE};
use super::section::{Section, Text};
use crate::job::{EnvText, NotifyEvent, NotifySpec};

const EVENTS: [(&str, NotifyEvent); 3] = [
    ("run_completed", NotifyEvent::RunCompleted),
    ("run_failed", NotifyEvent::RunFailed),
    ("dead_letter", NotifyEvent::DeadLetter),
];
const LATER: [&str; 2] = ["breaker_open", "tolerance_near"];

/// None when there is none, or one too wrong to be read, which has been noted.
pub(super) fn read(root: &Section<'_>) -> Option<NotifySpec> {
    let section = root.table("notify", "[notify]".to_owned())?;
    section.refuse_unknown_keys(&keys::NOTIFY, &NO_TYPE);
    section.require("on", "on = [\"run_failed\"]");
    let on = read_events(&section);
    let url = section.text("url").map(|text| read_url(&section, &text));
    let command = read_command(&section);
    if section.raw("url").is_none() && section.raw("command").is_none() {
        let help = "for example `url = \"${OPS_WEBHOOK}\"`".to_owned();
        section.fault_with_help(&section.span, "[notify] needs `url` or `command`", help);
    }
    Some(NotifySpec { on, url, command })
}

fn read_events(section: &Section<'_>) -> Vec<NotifyEvent> {
    let Some(list) = section.list("on", "a list of events such as [\"run_failed\"]") else {
        return Vec::new();
    };
    if list.is_empty() {
        section.fault(&section.span_of("on"), "`on` must name an event");
    }
    let event = |text: Text<'_>| {
        if LATER.contains(&text.text) {
            let message = format!("event \"{}\" is not in this version yet", text.text);
            section.fault_with_help(&text.span, message, "take it out: nobody would be told".to_owned());
            return None;
        }
        section.word("on", &text, &EVENTS)
    };
    let mut events: Vec<NotifyEvent> =
        list.into_iter().filter_map(|value| section.text_of("on", value)).filter_map(event).collect();
    events.sort_unstable();
    events.dedup();
    events
}

fn read_url(section: &Section<'_>, text: &Text<'_>) -> EnvText {
    if !["http://", "https://", "${"].iter().any(|start| text.text.starts_with(start)) {
        section.fault(&text.span, "`url` must begin with `http://`, `https://` or a `${NAME}`");
    }
    read_text(section, "url", text)
}

fn read_command(section: &Section<'_>) -> Option<Vec<EnvText>> {
    let list = section.list("command", "a list: the program and its arguments")?;
    if list.is_empty() {
        section.fault(&section.span_of("command"), "`command` must name a program");
    }
    let texts = list.into_iter().filter_map(|value| section.text_of("command", value));
    Some(texts.map(|text| read_text(section, "command", &text)).collect())
}

fn read_text(section: &Section<'_>, key: &str, text: &Text<'_>) -> EnvText {
    let read = EnvText::new(text.text);
    if read.is_broken() {
        section.fault(&text.span, format!("`{key}`: `${{` must begin a `${{NAME}}`; `${{` itself is `$${{`"));
    }
    read
}
