//! What each `type` of stage has of its own.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::section::{Section, Text, integer};
use crate::job::jq::JqFilter;
use crate::job::template::Template;
use crate::job::{CommandOutput, CommandSpec, EnvText, HttpSpec, ProcessorSpec};

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Echo,
    Jq,
    Http,
    Command,
}

pub(super) const TYPES: [(&str, Kind); 4] =
    [("echo", Kind::Echo), ("jq", Kind::Jq), ("http", Kind::Http), ("command", Kind::Command)];
pub(super) const LATER: [&str; 6] = ["worker", "postgres", "email", "chat", "sms", "push"];

const METHODS: [(&str, &str); 7] = [
    ("GET", "GET"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("PATCH", "PATCH"),
    ("DELETE", "DELETE"),
    ("HEAD", "HEAD"),
    ("OPTIONS", "OPTIONS"),
];
const OUTPUTS: [(&str, CommandOutput); 2] = [("text", CommandOutput::Text), ("json", CommandOutput::Json)];
/// What a service answers when trying again later may help.
const RETRY_STATUSES: [u16; 7] = [408, 425, 429, 500, 502, 503, 504];
/// Headers that follow from the request itself. Set by hand, they could only contradict it.
const NOT_TO_BE_SET: [&str; 3] = ["connection", "content-length", "transfer-encoding"];
/// Outputs travel in messages, so they are small.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

pub(super) fn read(section: &Section<'_>, kind: Kind) -> Option<ProcessorSpec> {
    match kind {
        Kind::Echo => Some(ProcessorSpec::Echo),
        Kind::Jq => read_jq(section),
        Kind::Http => read_http(section).map(|spec| ProcessorSpec::Http(Box::new(spec))),
        Kind::Command => read_command(section).map(ProcessorSpec::Command),
    }
}

fn read_jq(section: &Section<'_>) -> Option<ProcessorSpec> {
    section.require("filter", "filter = \"{name, total: (.price * .count)}\"");
    let text = section.text("filter")?;
    if let Err(error) = JqFilter::compile(text.text) {
        section.fault(&text.span, format!("`filter`: {error}"));
    }
    Some(ProcessorSpec::Jq { filter: text.text.to_owned() })
}

fn read_http(section: &Section<'_>) -> Option<HttpSpec> {
    section.require("url", "url = \"https://api.example/items/{{ item.id }}\"");
    let url = section.text("url").map(|url| read_url(section, &url));
    let headers = read_headers(section);
    let body = section.text("body").map(|body| read_template(section, "body", &body));
    let method = section.choice("method", &METHODS);
    let method = method.unwrap_or(if body.is_some() { "POST" } else { "GET" }).to_owned();
    let retry_statuses = read_retry_statuses(section);
    let max_response_bytes = section.bytes("max_response_bytes", 1..=MAX_OUTPUT_BYTES);
    Some(HttpSpec {
        method,
        url: url?,
        headers,
        body,
        retry_statuses,
        max_response_bytes: max_response_bytes.unwrap_or(MAX_OUTPUT_BYTES),
    })
}

/// A template that names its scheme, unless a variable or a template gives it.
fn read_url(section: &Section<'_>, url: &Text<'_>) -> EnvText {
    let begins = ["http://", "https://", "${", "{{", "{%"];
    if !begins.iter().any(|beginning| url.text.starts_with(beginning)) {
        section.fault(&url.span, "`url` must begin with `http://` or `https://`");
    }
    read_template(section, "url", url)
}

fn read_headers(section: &Section<'_>) -> BTreeMap<String, EnvText> {
    let mut headers = BTreeMap::new();
    let Some(table) = section.table("headers", "`headers`".to_owned()) else {
        return headers;
    };
    for (name, value) in table.entries() {
        let key = format!("headers.{}", name.text);
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.text.is_empty() || !name.text.bytes().all(is_token) {
            table.fault(&name.span, format!("`{}` can't be the name of a header", name.text));
        }
        let lower_case = name.text.to_ascii_lowercase();
        if NOT_TO_BE_SET.contains(&lower_case.as_str()) {
            table.fault(
                &name.span,
                format!("the header `{}` follows from the request: take it out", name.text),
            );
        }
        if let Some(text) = table.text_of(&key, value) {
            let before = headers.insert(lower_case, read_template(&table, &key, &text));
            if before.is_some() {
                table.fault(&name.span, format!("the header `{}` is there twice", name.text));
            }
        }
    }
    headers
}

fn read_retry_statuses(section: &Section<'_>) -> Vec<u16> {
    let wanted = "a list of HTTP statuses from 400 to 599";
    let Some(list) = section.list("retry_statuses", wanted) else {
        return RETRY_STATUSES.to_vec();
    };
    let status = |value: &Spanned<DeValue<'_>>| {
        let status = integer(value.get_ref()).and_then(|status| u16::try_from(status).ok());
        let status = status.filter(|status| (400..=599).contains(status));
        if status.is_none() {
            section.fault(&value.span(), format!("`retry_statuses` must be {wanted}"));
        }
        status
    };
    let mut statuses: Vec<u16> = list.into_iter().filter_map(status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

fn read_command(section: &Section<'_>) -> Option<CommandSpec> {
    section.require("argv", "argv = [\"python3\", \"score.py\", \"{{ item.id }}\"]");
    let argv = read_argv(section);
    let output = section.choice("output", &OUTPUTS).unwrap_or(CommandOutput::Text);
    let max_output_bytes = section.bytes("max_output_bytes", 1..=MAX_OUTPUT_BYTES);
    let retry_exit_codes = read_exit_codes(section);
    Some(CommandSpec {
        argv: argv?,
        output,
        max_output_bytes: max_output_bytes.unwrap_or(MAX_OUTPUT_BYTES),
        retry_exit_codes,
    })
}

fn read_argv(section: &Section<'_>) -> Option<Vec<EnvText>> {
    let list = section.list("argv", "a list: the program and its arguments")?;
    if list.is_empty() {
        section.fault(&section.span_of("argv"), "`argv` must name a program");
    }
    let argument = |value| {
        let text = section.text_of("argv", value)?;
        Some(read_template(section, "argv", &text))
    };
    Some(list.into_iter().filter_map(argument).collect())
}

fn read_exit_codes(section: &Section<'_>) -> Option<Vec<i32>> {
    let wanted = "a list of exit codes from 1 to 255";
    let list = section.list("retry_exit_codes", wanted)?;
    let code = |value: &Spanned<DeValue<'_>>| {
        let code = integer(value.get_ref()).and_then(|code| i32::try_from(code).ok());
        let code = code.filter(|code| (1..=255).contains(code));
        if code.is_none() {
            section.fault(&value.span(), format!("`retry_exit_codes` must be {wanted}"));
        }
        code
    };
    let mut codes: Vec<i32> = list.into_iter().filter_map(code).collect();
    codes.sort_unstable();
    codes.dedup();
    Some(codes)
}

/// Text that may have `${NAME}` and `{{ ... }}` in it, both of which must be well formed.
fn read_template(section: &Section<'_>, key: &str, text: &Text<'_>) -> EnvText {
    let template = EnvText::new(text.text);
    if let Err(error) = Template::check(&template) {
        section.fault(&text.span, format!("`{key}`: {error}"));
    }
    template
}
