use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use proptest::prelude::*;
use windrow_common::ids::SourceName;
use windrow_common::job::{FieldType, SourceKind};

use super::open::StandardInput;
use super::streams::{Inputs, Streams};
use super::*;
use crate::files::SourceFile;

/// What a source gave: items, rejects as (file, line, reason), the position after each step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    items: Vec<String>,
    rejects: Vec<(String, u64, String)>,
    positions: Vec<Position>,
    error: Option<String>,
}

fn csv(types: &[(&str, FieldType)]) -> SourceKind {
    let types = types.iter().map(|(name, of)| ((*name).to_owned(), *of)).collect();
    SourceKind::Csv { delimiter: b',', types }
}

fn drain(mut source: Streams) -> Given {
    let mut given = Given::default();
    loop {
        let mut item = Vec::new();
        match source.next(&mut item) {
            Ok(Step::Item) => given.items.push(String::from_utf8(item).unwrap()),
            Ok(Step::Rejected(reject)) => {
                assert!(item.is_empty(), "a reject left bytes behind");
                given.rejects.push((reject.file, reject.line, reject.reason));
            }
            Ok(Step::End) => return given,
            Err(error) => {
                given.error = Some(error.to_string());
                return given;
            }
        }
        given.positions.push(source.position());
    }
}

fn streams(kind: &SourceKind, inputs: Inputs, from: Position) -> Streams {
    Streams::new(SourceName::only(), kind.clone(), inputs, from, BytesRead::default())
}

fn read_text(kind: &SourceKind, text: &[u8], block_bytes: usize) -> Given {
    let input = StandardInput::from_reader(Box::new(Cursor::new(text.to_vec())));
    let source = streams(kind, Inputs::StandardInput(Some(input)), Position::start_of(0));
    drain(source.with_block_bytes(block_bytes))
}

fn files(folder: &Path, names: &[&str]) -> Inputs {
    let files = names.iter().map(|name| SourceFile::fingerprint(folder.join(name), folder).unwrap());
    Inputs::Files(files.collect())
}

fn read_files(kind: &SourceKind, folder: &Path, names: &[&str], from: Position) -> Given {
    drain(streams(kind, files(folder, names), from))
}

#[test]
fn a_json_lines_stream_gives_values_verbatim_and_names_the_line_of_each_bad_row() {
    let text = "\u{feff}{\"a\" : 1.50}\r\n\n  [1,\t2] \n{\"a\":\n\"x\n3e400\nnull";
    let given = read_text(&SourceKind::Jsonl, text.as_bytes(), 7);
    assert_eq!(given.items, ["{\"a\" : 1.50}", "[1,\t2]", "3e400", "null"]);
    let lines: Vec<u64> = given.rejects.iter().map(|(_, line, _)| *line).collect();
    assert_eq!(lines, [4, 5]);
    assert!(given.rejects[0].2.starts_with("not JSON: "), "{}", given.rejects[0].2);
    assert_eq!(given.error, None);
}

#[test]
fn bytes_that_are_not_utf8_are_a_reject() {
    let given = read_text(&SourceKind::Jsonl, b"\"\xff\"\n1\n", 1024);
    assert_eq!(given.items, ["1"]);
    assert_eq!(given.rejects, [("-".to_owned(), 1, "not UTF-8".to_owned())]);
}

/// A stream of a repeated byte between two texts, never in memory as a whole.
fn long(before: &'static str, bytes: u64, after: &'static str) -> Box<dyn Read + Send> {
    Box::new(Cursor::new(before).chain(std::io::repeat(b'x').take(bytes)).chain(Cursor::new(after)))
}

#[test]
fn an_item_over_the_limit_is_a_reject_in_every_format() {
    let limit = MAX_ITEM_BYTES as u64;
    for (kind, before, after) in [
        (SourceKind::Jsonl, "1\n\"", "\"\n2\n"),
        (SourceKind::Json, "[1,\n\"", "\",\n2]"),
        (csv(&[]), "a\n1\n\"", "\"\n2\n"),
    ] {
        // One just within the limit, one just beyond it, one far beyond it.
        let quoted = if matches!(kind, SourceKind::Csv { .. }) { "{\"a\":\"\"}".len() as u64 } else { 2 };
        for (bytes, fits) in [(limit - quoted, true), (limit - quoted + 1, false), (limit * 3, false)] {
            let input = StandardInput::from_reader(long(before, bytes, after));
            let inputs = Inputs::StandardInput(Some(input));
            let given = drain(streams(&kind, inputs, Position::start_of(0)));
            assert_eq!(given.error, None, "{kind:?}");
            assert_eq!(given.items.len(), if fits { 3 } else { 2 }, "{kind:?} {bytes}");
            assert!(given.items.last().unwrap().contains('2'));
            if !fits {
                let line = if matches!(kind, SourceKind::Csv { .. }) { 3 } else { 2 };
                assert_eq!(given.rejects, [("-".to_owned(), line, "larger than 8 MiB".to_owned())]);
            }
        }
    }
}

#[test]
fn csv_rows_become_objects_of_the_types_asked_for() {
    let types = [
        ("int", FieldType::Int),
        ("float", FieldType::Float),
        ("yes", FieldType::Bool),
        ("any", FieldType::Json),
    ];
    let text = "text,int,float,yes,any\r\n\
                \"a \"\"b\"\"\nc\",007,1.50,YES,\"{\"\"k\"\":\n1}\"\r\n\
                ,,,,\r\n\
                \u{e9},-18446744073709551615,.5,0,[]\r\n\
                x,18446744073709551615,1e3,No,\"\"\"s\"\"\"\n";
    let given = read_text(&csv(&types), text.as_bytes(), 5);
    assert_eq!(
        given.items,
        [
            r#"{"text":"a \"b\"\nc","int":7,"float":1.50,"yes":true,"any":{"k": 1}}"#,
            r#"{"text":"","int":null,"float":null,"yes":null,"any":null}"#,
            r#"{"text":"x","int":18446744073709551615,"float":1e3,"yes":false,"any":"s"}"#,
        ]
    );
    let reason = "column `int` is not an int of 64 bits".to_owned();
    assert_eq!(given.rejects, [("-".to_owned(), 6, reason)]);
}

#[test]
fn csv_rows_that_do_not_fit_their_header_are_rejects_with_their_line() {
    let text = b"a,b\n1,2\n3\n\n4,5,6,7\n\xff,8\n\"9\n\",x\n10,\"11\"\n";
    let given = read_text(&csv(&[("b", FieldType::Int)]), text, 3);
    assert_eq!(given.items, [r#"{"a":"1","b":2}"#, r#"{"a":"10","b":11}"#]);
    let rejects: Vec<(u64, &str)> =
        given.rejects.iter().map(|(_, line, why)| (*line, why.as_str())).collect();
    assert_eq!(
        rejects,
        [
            (3, "fields: 1; columns in the header: 2"),
            (5, "more fields than the 2 columns in the header"),
            (6, "column `a` is not UTF-8"),
            (7, "column `b` is not an int of 64 bits"),
        ]
    );
}

#[test]
fn a_csv_quote_that_is_never_closed_is_an_error_at_the_line_where_it_opens() {
    let given = read_text(&csv(&[]), b"a,b\n1,2\n3,\"4\n5,6\n7,8\n", 1024);
    assert_eq!(given.items, [r#"{"a":"1","b":"2"}"#]);
    let error = given.error.unwrap();
    assert!(error.contains("line 3") && error.contains("never closed"), "{error}");
}

#[test]
fn a_csv_header_that_cannot_name_columns_is_an_error() {
    for (text, word) in [("a,a\n1,2\n", "two columns named `a`"), ("b\n1\n", "names column `a`")] {
        let given = read_text(&csv(&[("a", FieldType::Int)]), text.as_bytes(), 1024);
        assert!(given.error.as_ref().is_some_and(|error| error.contains(word)), "{given:?}");
    }
}

#[test]
fn a_delimiter_can_be_chosen() {
    let kind = SourceKind::Csv { delimiter: b';', types: std::collections::BTreeMap::new() };
    assert_eq!(read_text(&kind, b"a;b\n1,5;2", 2).items, [r#"{"a":"1,5","b":"2"}"#]);
}

#[test]
fn an_array_gives_its_elements_on_one_line_each() {
    let text =
        "\u{feff} [\n{\"a\":\n [1,\r\n2], \"s\":\"],{\\\"\\\\\"},\n\n \"x\" ,null\n,-1.0e5 , [[]]\n]\n ";
    let given = read_text(&SourceKind::Json, text.as_bytes(), 3);
    assert_eq!(given.items, [r#"{"a":  [1,  2], "s":"],{\"\\"}"#, "\"x\"", "null", "-1.0e5", "[[]]"]);
    assert_eq!((given.error, given.rejects.len()), (None, 0));
    assert_eq!(read_text(&SourceKind::Json, b"[]", 8).items, [""; 0]);
}

#[test]
fn bad_elements_of_an_array_are_rejects_with_their_line() {
    let given = read_text(&SourceKind::Json, b"[1,\ntru,\n{\"a\":},\n,\n[1}, \"a\nb\",\n2,]", 4);
    assert_eq!(given.items, ["1", "2"]);
    let lines: Vec<u64> = given.rejects.iter().map(|(_, line, _)| *line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 5, 7]);
    assert_eq!(given.error, None);
}

#[test]
fn an_array_that_breaks_off_or_is_none_is_an_error_and_never_an_end() {
    for text in ["[1,2", "[1,", "[1,{\"a\":[", "[\"a", "", "{\"a\":1}", "[1]2", "[1 2]x", "[1}]"] {
        let given = read_text(&SourceKind::Json, text.as_bytes(), 2);
        assert!(given.error.is_some(), "{text}: {given:?}");
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn several_files_are_read_in_order_and_decompressed_by_their_ending() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a.jsonl"), "1\n2").unwrap();
    fs::write(path("b.jsonl.gz"), [gzip(b"3\n4"), gzip(b"5\n6\n")].concat()).unwrap();
    let frames = [b"7\n".as_slice(), b"8\nx\n"].map(|text| zstd::encode_all(text, 1).unwrap());
    fs::write(path("c.jsonl.zst"), frames.concat()).unwrap();
    fs::write(path("d.jsonl"), "").unwrap();
    fs::write(path("e.jsonl"), "9\n").unwrap();
    let names = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.jsonl", "e.jsonl"];
    let given = read_files(&SourceKind::Jsonl, folder.path(), &names, Position::start_of(0));
    assert_eq!(given.items, ["1", "2", "3", "45", "6", "7", "8", "9"]);
    assert_eq!((given.rejects[0].0.as_str(), given.rejects[0].1), ("c.jsonl.zst", 3));
    assert_eq!(given.error, None);
}

#[test]
fn a_truncated_or_damaged_compressed_file_is_an_error_after_what_could_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let numbers = (0..20_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_string());
    let text = numbers.collect::<Vec<_>>().join("\n");
    let (gz, zst) = (gzip(text.as_bytes()), zstd::encode_all(text.as_bytes(), 1).unwrap());
    let second_header = [gz.clone(), gz[..5].to_vec()].concat();
    let flipped = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 6;
        bytes[at] ^= 0x55;
        bytes
    };
    for (name, bytes) in [
        ("half.gz", gz[..gz.len() / 2].to_vec()),
        ("no-trailer.gz", gz[..gz.len() - 8].to_vec()),
        ("short.gz", gz[..gz.len() - 1].to_vec()),
        ("second.gz", second_header),
        ("flipped.gz", flipped(gz)),
        ("empty.gz", vec![]),
        ("half.zst", zst[..zst.len() / 2].to_vec()),
        ("short.zst", zst[..zst.len() - 1].to_vec()),
        ("empty.zst", vec![]),
    ] {
        fs::write(folder.path().join(name), bytes).unwrap();
        let given = read_files(&SourceKind::Jsonl, folder.path(), &[name], Position::start_of(0));
        let error = given.error.unwrap_or_else(|| panic!("{name} was taken for whole"));
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    fs::write(&path, "1\n2\n").unwrap();
    let mut source = streams(&SourceKind::Jsonl, files(folder.path(), &["a"]), Position::start_of(0));
    assert_eq!(source.next(&mut Vec::new()).unwrap(), Step::Item);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"3\n").unwrap();
    let given = drain(source);
    assert!(given.error.unwrap().contains("changed after the run began"));
}

#[test]
fn a_folder_read_as_a_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(SourceFile::fingerprint(folder.path().to_owned(), folder.path()).is_err());
}

/// One text per format, with rejects, empty lines, quotes and breaks in it.
fn samples() -> Vec<(SourceKind, &'static str, Vec<u8>)> {
    let mut jsonl = Vec::new();
    let mut csv_text = b"\xef\xbb\xbfid,note\r\n".to_vec();
    let mut json = b"[".to_vec();
    for n in 0..40 {
        let bad = n % 7 == 3;
        write!(
            jsonl,
            "{{\"id\": {n}, \"note\":\"\u{e9}\\\"{}\"}}{}",
            "y".repeat(n),
            if bad { "]\n" } else { "\r\n\n" }
        )
        .unwrap();
        write!(csv_text, "\"{n}\",\"\u{feff}a\n\"\"{n}\"\"\"{}", if bad { ",more\n" } else { "\r\n" })
            .unwrap();
        write!(
            json,
            "{}{{\"id\":\n{n}, \"note\": \"],\\\"{{\"}}{}",
            if n > 0 { ",\n" } else { "" },
            if bad { "x" } else { " " }
        )
        .unwrap();
    }
    json.extend_from_slice(b"]\n");
    vec![
        (SourceKind::Jsonl, "s.jsonl", jsonl),
        (csv(&[]), "s.csv", csv_text),
        (SourceKind::Json, "s.json", json),
    ]
}

#[test]
fn the_samples_have_items_and_rejects() {
    for (kind, name, text) in samples() {
        let given = read_text(&kind, &text, BLOCK_BYTES);
        assert_eq!((given.items.len(), given.rejects.len(), given.error), (34, 6, None), "{name}");
    }
}

proptest! {
    #[test]
    fn what_a_source_gives_does_not_depend_on_how_it_is_read(block_bytes in 1usize..200) {
        for (kind, name, text) in samples() {
            prop_assert_eq!(read_text(&kind, &text, block_bytes), read_text(&kind, &text, BLOCK_BYTES), "{}", name);
        }
    }

    #[test]
    fn no_bytes_make_a_source_panic_or_go_on_for_ever(text in prop::collection::vec(
        prop::sample::select(b"{}[]\",:\\\n\r 1a\xc3\xa9".to_vec()), 0..200), block_bytes in 1usize..20) {
        for kind in [SourceKind::Jsonl, SourceKind::Json, csv(&[("a", FieldType::Json)]), csv(&[])] {
            let given = read_text(&kind, &text, block_bytes);
            prop_assert_eq!(&given, &read_text(&kind, &text, BLOCK_BYTES));
            for item in &given.items {
                prop_assert!(serde_json::from_str::<serde_json::Value>(item).is_ok());
                prop_assert!(!item.contains(['\n', '\r']));
            }
        }
    }
}

#[test]
fn reading_from_any_position_on_gives_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, name, text) in samples() {
        let packed = format!("{name}.gz");
        fs::write(folder.path().join(name), &text).unwrap();
        fs::write(folder.path().join(&packed), gzip(&text)).unwrap();
        let names = [name, packed.as_str(), name];
        let whole = read_files(&kind, folder.path(), &names, Position::start_of(0));
        assert_eq!(whole.positions.len(), 3 * 40);
        for (step, from) in whole.positions.iter().enumerate() {
            let rest = read_files(&kind, folder.path(), &names, *from);
            assert_eq!(rest.positions, whole.positions[step + 1..], "{name} from {from:?}");
            assert!(whole.items.ends_with(&rest.items) && whole.rejects.ends_with(&rest.rejects));
        }
    }
}
