use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::{Zoned, fmt::strtime};
use minijinja::{
    Environment, ErrorKind,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, Value},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::{Result, files};

/// Steps of a template: thousands of messages take fewer, and a loop without an end is over in a second.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat_template";

/// What somebody says in a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// How a model's chats are written: a Jinja template with the names and settings that transformers gives it.
///
/// It is run as data of others: without access to files, and for a limited number of steps. Strings that it doubles again
/// and again are not limited.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// By name, such as `bos_token`.
    special_tokens: BTreeMap<String, String>,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// A special token, as it is written or with how it is matched.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Described { content: String },
    Other(serde::de::IgnoredAny),
}

#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: BTreeMap<String, SpecialToken>,
}

impl Config {
    fn open(path: &Path) -> Result<Self> {
        match path.exists() {
            true => files::parse(path, &files::read(path)?),
            false => Ok(Self::default()),
        }
    }

    fn special_tokens(self) -> impl Iterator<Item = (String, String)> {
        self.rest
            .into_iter()
            .filter_map(|(name, token)| match token {
                SpecialToken::Text(text) | SpecialToken::Described { content: text } => {
                    name.ends_with("_token").then_some((name, text))
                }
                SpecialToken::Other(_) => None,
            })
    }
}

impl ChatTemplate {
    /// Reads the template of a folder: `chat_template.jinja`, or what `tokenizer_config.json` has. There may be none.
    ///
    /// # Errors
    /// If one of the files cannot be understood.
    pub fn open(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let [file, config, map] = [
            "chat_template.jinja",
            "tokenizer_config.json",
            // Of older folders.
            "special_tokens_map.json",
        ]
        .map(|name| folder.as_ref().join(name));
        let mut settings = Config::open(&config)?;
        let (path, source) = match settings.chat_template.take() {
            _ if file.exists() => {
                let template = files::read(&file)?;
                (file, template)
            }
            Some(Templates::One(template)) => (config, template),
            Some(Templates::Named(templates)) => {
                let mut named = templates.into_iter();
                match named.find(|template| template.name == "default") {
                    Some(default) => (config, default.template),
                    None => return Ok(None),
                }
            }
            None => return Ok(None),
        };
        let special_tokens = Config::open(&map)?
            .special_tokens()
            .chain(settings.special_tokens());
        Self::new(source, special_tokens.collect(), path).map(Some)
    }

    fn new(
        source: String,
        special_tokens: BTreeMap<String, String>,
        path: PathBuf,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("raise_exception", raise_exception);
        let added = environment.add_template_owned(NAME, without_generation(&source));
        added.map_err(|error| files::wrong(&path, said(&error)))?;
        Ok(Self {
            environment,
            special_tokens,
            path,
        })
    }

    /// A chat as the model has seen chats in training, special tokens included. `add_generation_prompt` adds what begins
    /// an answer.
    ///
    /// # Errors
    /// What the template refuses, such as roles in an order that the model does not know.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            tools: (),
            documents: (),
            add_generation_prompt: bool,
            #[serde(flatten)]
            special_tokens: &'a BTreeMap<String, String>,
        }
        let template = self.environment.get_template(NAME);
        let context = Context {
            messages,
            tools: (),
            documents: (),
            add_generation_prompt,
            special_tokens: &self.special_tokens,
        };
        let text = template.and_then(|template| template.render(Serde(context)));
        text.map_err(|error| files::wrong(&self.path, said(&error)))
    }
}

/// An error of a template, in a line.
fn said(error: &minijinja::Error) -> String {
    let kind = error.kind().to_string();
    match (error.kind(), error.line()) {
        (ErrorKind::OutOfFuel, _) => format!("the template did not end in {FUEL} steps"),
        (_, Some(line)) => {
            let what = error.detail().unwrap_or(&kind);
            format!("line {line} of the template: {what}")
        }
        _ => format!("the template cannot be used: {error}"),
    }
}

/// The block `generation` marks what is trained on, for transformers alone. What it encloses is taken always.
fn without_generation(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        output += before;
        let length = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(length);
        let word = tag.trim_matches(['{', '%', '}', '-', '+', ' ', '\n', '\t']);
        output += &match word {
            "generation" => tag.replace(word, "if true"),
            "endgeneration" => tag.replace(word, "endif"),
            _ => tag.into(),
        };
        rest = after;
    }
    output + rest
}

/// What a template's functions come to.
type Jinja<T> = std::result::Result<T, minijinja::Error>;

fn refused(detail: impl Into<String>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn raise_exception(message: String) -> Jinja<Value> {
    Err(refused(message))
}

/// The local time, as Python's `strftime` writes it.
fn strftime_now(format: &str) -> Jinja<String> {
    strtime::format(format, &Zoned::now()).map_err(|error| refused(error.to_string()))
}

/// JSON as Python's `json.dumps` writes it, with characters as they are.
fn to_json(value: &Value, options: Kwargs) -> Jinja<String> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(refused("tojson cannot escape what is not ASCII"));
    }
    options.assert_all_used()?;
    match indent {
        // More would only take memory.
        Some(indent) => write_json(
            value,
            PrettyFormatter::with_indent(" ".repeat(indent.min(64)).as_bytes()),
        ),
        None => write_json(value, Spaced),
    }
}

fn write_json(value: &Value, formatter: impl Formatter) -> Jinja<String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| refused(error.to_string()))?;
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

/// A line of JSON with a space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
