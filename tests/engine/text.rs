//! Tokenizers and chat templates of folders, kind and hostile.

use std::{fs, path::Path, time::Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use zipserv_engine::{ChatTemplate, Message, Tokenizer};

use super::bytes;

fn with(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn rendered(template: &str, messages: &[Message]) -> Result<String, String> {
    let folder = with(&[("chat_template.jinja", template)]);
    let template = ChatTemplate::open(folder.path()).map_err(|error| error.to_string())?;
    template
        .unwrap()
        .render(messages, true)
        .map_err(|error| error.to_string())
}

#[test]
fn chats_are_written_as_transformers_writes_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/engine/chats");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let index: Value = serde_json::from_str(&read("index.json")).unwrap();
    let expected: Value = serde_json::from_str(&read("expected.json")).unwrap();
    let chats: Vec<Vec<(String, String)>> = serde_json::from_value(index["chats"].clone()).unwrap();
    let (mut written, mut refused) = (0, 0);
    for name in index["templates"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let mut config = index["special_tokens"].clone();
        config["chat_template"] = read(&format!("{name}.jinja")).into();
        let folder = with(&[("tokenizer_config.json", &config.to_string())]);
        let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
        for (number, chat) in chats.iter().enumerate() {
            let messages = chat
                .iter()
                .map(|(role, content)| Message::new(role, content));
            let messages: Vec<_> = messages.collect();
            for prompt in [false, true] {
                let text = template.render(&messages, prompt);
                match &expected[name][number][usize::from(prompt)] {
                    Value::String(expected) => {
                        assert_eq!(&text.unwrap(), expected, "{name} {number} {prompt}");
                        written += 1;
                    }
                    reason => {
                        let said = text.unwrap_err().to_string();
                        let reason = reason["refused"].as_str().unwrap();
                        assert!(
                            said.ends_with(&format!(": {reason}")),
                            "{said}: not {reason}"
                        );
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(written > 50 && refused > 1, "{written} {refused}");
}

#[test]
fn templates_are_found_where_transformers_puts_them() {
    let text = |files: &[(&str, &str)]| {
        let template = ChatTemplate::open(with(files).path()).unwrap()?;
        Some(
            template
                .render(&[Message::new("user", "hi")], false)
                .unwrap(),
        )
    };
    assert_eq!(text(&[]), None);
    let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    let config = ("tokenizer_config.json", &named.to_string()[..]);
    assert_eq!(text(&[config]), Some("d".into()));
    let file = (
        "chat_template.jinja",
        "{{ bos_token }} {{ pad_token }} {{ messages[0].content }}",
    );
    assert_eq!(text(&[file, config]), Some("  hi".into()));
    let tokens = json!({"bos_token": {"content": "<b>", "lstrip": false}, "pad_token": null, "add_bos_token": true});
    let map = json!({"bos_token": "<old>", "pad_token": "<pad>"});
    let (tokens, map) = (tokens.to_string(), map.to_string());
    let config = ("tokenizer_config.json", &tokens[..]);
    assert_eq!(text(&[config]), None);
    let older = ("special_tokens_map.json", &map[..]);
    assert_eq!(text(&[file, config, older]), Some("<b> <pad> hi".into()));
}

#[test]
fn hostile_templates_are_refused() {
    let start = Instant::now();
    for (template, reason) in [
        (
            "{{ raise_exception('No.') }}",
            "line 1 of the template: No.",
        ),
        ("\n\n{% if %}", "line 3"),
        ("{{ messages[0].content.no.further }}", "line 1"),
        ("{% include 'tokenizer.json' %}", "tokenizer.json"),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "recursion",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "did not end in 10000000 steps",
        ),
        ("{{ range(9999999999) }}", "too many elements"),
        ("{{ 'x' * 9999999999 }}", "the template"),
        ("{{ messages | tojson(ensure_ascii=true) }}", "not ASCII"),
        ("{{ messages | tojson(indent=-1) }}", "the template"),
        ("{{ strftime_now('%!') }}", "the template"),
        ("{{ messages.__class__.__mro__ }}", "the template"),
    ] {
        let said = rendered(template, &[Message::new("user", "hi")]).unwrap_err();
        assert!(
            said.contains("chat_template.jinja: ") && said.contains(reason),
            "{said}"
        );
    }
    let deep = "{{ ".to_owned() + &"(".repeat(100_000) + "1" + &")".repeat(100_000) + " }}";
    assert!(rendered(&deep, &[]).unwrap_err().contains("recursion"));
    assert!(start.elapsed().as_secs() < 60);

    for config in ["[", "[]", r#"{"chat_template": 3}"#, "\u{fffd}"] {
        let folder = with(&[("tokenizer_config.json", config)]);
        let said = ChatTemplate::open(folder.path()).unwrap_err().to_string();
        assert!(said.contains("tokenizer_config.json: "), "{said}");
    }
}

#[test]
fn texts_come_back_from_their_tokens() {
    let tokenizer = bytes::tokenizer();
    // Neither cut nor filled up, though the file says how.
    for text in ["", "a", "größe 重み 👍\r\n\0", "<end> and <other>"] {
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("a<end>", false).unwrap(), [97, bytes::END]);
    assert_eq!(tokenizer.decode(&[97, bytes::END], false).unwrap(), "a");
    assert_eq!(tokenizer.decode(&[0xe9, 0x87], true).unwrap(), "\u{fffd}");
    // Models have more rows than tokenizers have tokens.
    assert_eq!(tokenizer.decode(&[97, 5000, u32::MAX], true).unwrap(), "a");
}

#[test]
fn hostile_tokenizers_are_refused() {
    let folder = bytes::folder();
    let path = folder.path().join("tokenizer.json");
    let good = fs::read_to_string(&path).unwrap();
    let said = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        let tokenizer = Tokenizer::open(folder.path());
        tokenizer.err().map(|error| error.to_string())
    };
    for text in ["", "{", "[]", "{}", "\0", &good[..good.len() - 2]] {
        let said = said(text.as_bytes()).unwrap();
        assert!(said.contains("tokenizer.json: "), "{said}");
    }
    assert!(said(b"\xff").unwrap().contains("UTF-8"));
    let deep = format!("{{\"model\": {}", "[".repeat(1_000_000));
    assert!(said(deep.as_bytes()).is_some());

    // A part of it is absent, or another thing: refused, or of use.
    let value: Value = serde_json::from_str(&good).unwrap();
    let mut open = 0;
    for key in value.as_object().unwrap().keys() {
        for other in [
            Value::Null,
            json!(-1),
            json!("x"),
            json!([1]),
            json!({"type": "BPE"}),
        ] {
            let mut changed = value.clone();
            changed[key] = other;
            if said(changed.to_string().as_bytes()).is_none() {
                open += 1;
                let tokenizer = Tokenizer::open(folder.path()).unwrap();
                if let Ok(tokens) = tokenizer.encode("größe", true) {
                    tokenizer.decode(&tokens, true).unwrap();
                }
            }
        }
    }
    assert!(open > 3);
    // Backtracking has its limit.
    let mut slow = value;
    slow["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(?=(a+)+$)(a+)+b\\1"},
        "behavior": "Isolated", "invert": false});
    assert_eq!(said(slow.to_string().as_bytes()), None);
    let start = Instant::now();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    let _ = tokenizer.encode(&"a".repeat(5000), false);
    assert!(start.elapsed().as_secs() < 60);
}
