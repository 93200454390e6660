//! The job hash: by what a consumer knows which job file a message was made for.
//!
//! It covers the canonical meaning of the stages: name, type, effect, and what the type does with an item. Not how
//! often, how fast, how long or within which bounds (`timeout`, `retry`, `concurrency`, `destination`,
//! `max_..._bytes`), nor sources, chunks, sinks and tolerance, so that those can change under a running run.
//! It is taken before environment variables are filled in, and after defaults are: an order of keys, a comment
//! or a spelled-out default changes nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{CommandOutput, Effect, EnvText, ProcessorSpec, StageSpec};
use crate::ids::JobHash;

/// Changed when the same stages must hash differently.
const DOMAIN: &str = "windrow job 1\n";

/// The hash of these stages: 32 hexadecimal digits of BLAKE3 over their canonical JSON.
pub fn of_stages(stages: &[StageSpec]) -> JobHash {
    let canonical: Value = stages.iter().map(canonical_stage).collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN.as_bytes());
    hasher.update(canonical.to_string().as_bytes());
    let digits = hasher.finalize().to_hex();
    match digits[..32].parse() {
        Ok(hash) => hash,
        Err(error) => unreachable!("hexadecimal digits make a name: {error}"),
    }
}

fn canonical_stage(stage: &StageSpec) -> Value {
    let mut canonical = json!({
        "name": stage.name,
        "when": stage.when,
        "skip_when": stage.skip_when,
        "processor": canonical_processor(&stage.processor),
    });
    if stage.effect == Effect::AtMostOnce {
        canonical["effect"] = json!("at-most-once");
    }
    canonical
}

fn canonical_processor(processor: &ProcessorSpec) -> Value {
    match processor {
        ProcessorSpec::Echo => json!({"type": "echo"}),
        ProcessorSpec::Jq { filter } => json!({"type": "jq", "filter": filter}),
        ProcessorSpec::Http(http) => {
            let headers: BTreeMap<&str, &str> =
                http.headers.iter().map(|(name, text)| (name.as_str(), text.as_written())).collect();
            json!({
                "type": "http",
                "method": http.method,
                "url": http.url.as_written(),
                "headers": headers,
                "body": http.body.as_ref().map(EnvText::as_written),
                "retry_statuses": http.retry_statuses,
            })
        }
        ProcessorSpec::Command(command) => json!({
            "type": "command",
            "argv": command.argv.iter().map(EnvText::as_written).collect::<Vec<_>>(),
            "output": match command.output {
                CommandOutput::Text => "text",
                CommandOutput::Json => "json",
            },
            "retry_exit_codes": command.retry_exit_codes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::job::Job;
    use std::path::Path;

    const HTTP: &str = r#"
        name = "sync"
        [source]
        type = "jsonl"
        path = "items.jsonl"
        [[stage]]
        name = "push"
        type = "http"
        url = "https://crm.example/{{ item.id }}"
        headers = { authorization = "Bearer ${CRM_TOKEN}" }
        body = "{{ item | tojson }}"
    "#;

    fn hash(text: &str) -> String {
        Job::parse(Path::new("job.toml"), text).unwrap().hash.to_string()
    }

    #[test]
    fn the_hash_of_a_known_job_stays_what_it_is() {
        assert_eq!(hash(HTTP), "1971c5da3d17ee1ad9bd75fb9e986a40");
    }

    #[test]
    fn order_comments_spelled_out_defaults_and_limits_change_nothing() {
        let spelled_out = r#"
            # The same, at length.
            [sink]
            type = "none"
            [destination.crm]
            max_connections = 3
            [[stage]]
            retry_statuses = [504, 503, 502, 500, 429, 425, 408]
            body = "{{ item | tojson }}"
            method = "POST"
            headers = { Authorization = "Bearer ${CRM_TOKEN}" }
            url = 'https://crm.example/{{ item.id }}'
            type = "http"
            name = "push"
            effect = "at-least-once"
            timeout = "5s"
            retry = { count = 9 }
            concurrency = 50
            destination = "crm"
            max_response_bytes = "1 KiB"
            [chunk]
            items = 1
            [source]
            type = "csv"
            path = "other.csv"
            [tolerate]
            failed = 0
        "#;
        assert_eq!(hash(&format!("name = \"other\"\n{spelled_out}")), hash(HTTP));
    }

    #[test]
    fn whatever_an_item_meets_changes_the_hash() {
        for (old, new) in [
            ("name = \"push\"", "name = \"pull\""),
            ("item.id", "item.key"),
            ("CRM_TOKEN", "OTHER_TOKEN"),
            ("authorization", "x-token"),
            ("body = \"{{ item | tojson }}\"", "body = \"{}\""),
            ("type = \"http\"", "type = \"http\"\nmethod = \"PUT\""),
            ("type = \"http\"", "type = \"http\"\nretry_statuses = [503]"),
            ("type = \"http\"", "type = \"http\"\nwhen = \".active\""),
            ("type = \"http\"", "type = \"http\"\nskip_when = \".active\""),
            ("type = \"http\"", "type = \"http\"\neffect = \"at-most-once\""),
        ] {
            assert!(HTTP.contains(old), "{old}");
            assert_ne!(hash(&HTTP.replace(old, new)), hash(HTTP), "{new}");
        }
    }
}
