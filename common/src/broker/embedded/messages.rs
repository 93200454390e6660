//! Messages as rows.

use bytes::Bytes;
use rusqlite::Row;
use rusqlite::types::Type;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::storage::Store;
use crate::envelope::{HeaderValue, Headers, Message};

impl Store {
    /// Stores a message, in no queue yet, and returns its number: larger than that of any message here.
    pub(super) fn insert_message(&self, message: &Message) -> rusqlite::Result<i64> {
        let sql = "INSERT INTO messages (kind, message_id, reply_to, headers, content_encoding, body)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        self.connection.prepare_cached(sql)?.insert((
            &message.kind,
            &message.message_id,
            &message.reply_to,
            headers_to_json(&message.headers)?,
            &message.content_encoding,
            &message.body[..],
        ))
    }

    /// Reads a message.
    pub(super) fn load_message(&self, number: i64) -> rusqlite::Result<Message> {
        let sql = "SELECT kind, message_id, reply_to, headers, content_encoding, body
                   FROM messages WHERE number = ?1";
        self.connection.prepare_cached(sql)?.query_row([number], read_message)
    }

    /// Deletes a message.
    pub(super) fn delete_message(&self, number: i64) -> rusqlite::Result<()> {
        self.connection.prepare_cached("DELETE FROM messages WHERE number = ?1")?.execute([number])?;
        Ok(())
    }
}

fn read_message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let headers = row.get_ref(3)?.as_str()?;
    Ok(Message {
        kind: row.get(0)?,
        message_id: row.get(1)?,
        reply_to: row.get(2)?,
        headers: headers_from_json(headers)
            .ok_or_else(|| rusqlite::Error::InvalidColumnType(3, "headers".to_owned(), Type::Text))?,
        content_encoding: row.get(4)?,
        body: Bytes::copy_from_slice(row.get_ref(5)?.as_blob()?),
    })
}

/// A header's value as JSON has it.
#[derive(Serialize)]
#[serde(untagged)]
enum JsonValue<'a> {
    Text(&'a str),
    Int(i64),
}

/// Headers as one JSON object, in their order.
struct JsonHeaders<'a>(&'a Headers);

impl Serialize for JsonHeaders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| match value {
            HeaderValue::Text(text) => (name, JsonValue::Text(text)),
            HeaderValue::Int(number) => (name, JsonValue::Int(*number)),
        }))
    }
}

fn headers_to_json(headers: &Headers) -> rusqlite::Result<String> {
    serde_json::to_string(&JsonHeaders(headers))
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn headers_from_json(json: &str) -> Option<Headers> {
    let object: Map<String, Value> = serde_json::from_str(json).ok()?;
    let mut headers = Headers::new();
    for (name, value) in object {
        let value = match value {
            Value::String(text) => HeaderValue::Text(text),
            Value::Number(number) => HeaderValue::Int(number.as_i64()?),
            _ => return None,
        };
        headers.set(&name, value);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_storage_in_their_order() {
        let mut headers = Headers::new();
        headers.set_text("z", "quote \" and line\n");
        headers.set("a", HeaderValue::Int(i64::MIN));
        headers.set_text("empty", "");
        assert_eq!(headers_from_json(&headers_to_json(&headers).unwrap()), Some(headers));
        assert_eq!(headers_from_json("{\"a\":[]}"), None);
    }
}
