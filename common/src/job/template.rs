//! Templates of a job file: `{{ item.email }}`, filled in for each item by minijinja.
//!
//! A missing name is an error, nothing is escaped (`tojson` and `urlencode` are there to ask for it), and both
//! the work and the output of a rendering are bounded.
//!
//! `${NAME}` in a template never becomes part of the template's own text. Each stands for a hidden variable
//! of the context, so that a value with `{{` in it is written as it is and never run. It may therefore stand
//! between tags only, not within `{{ }}`; [`Template::check`] finds it elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, ObjectRepr, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

use super::env_text::{EnvLookup, EnvText, MissingVariable, Part};

/// A rendering longer than this fails.
pub const MAX_RENDERED_BYTES: usize = 1 << 20;
/// Steps of a rendering, or 64 bytes made in it, each: a loop over a large item fits, an endless one ends.
const MAX_STEPS: u64 = 1_000_000;

/// A compiled template. Rendering changes nothing in it, so it serves any number of items at once.
pub struct Template {
    environment: Environment<'static>,
    /// Hidden variables of the context and their values.
    secrets: BTreeMap<String, Value>,
}

/// A template that doesn't compile, or that doesn't render for this item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The text is no template.
    #[error("{0}")]
    Syntax(String),
    /// A name that nothing can give a value.
    #[error("`{0}` is unknown: a template may name {CONTEXT_NAMES}")]
    UnknownName(String),
    /// `${` without a name and a brace.
    #[error(
        "`${{` must be followed by a name and `}}`, as in `${{API_TOKEN}}`; write `$${{` for the characters themselves"
    )]
    Variable,
    /// `${NAME}` where it can't be filled in.
    #[error("`${{{0}}}` can't stand inside `{{{{ }}}}`, a comment or a raw block: put it outside")]
    MisplacedVariable(String),
    /// A variable that is not set.
    #[error(transparent)]
    Missing(#[from] MissingVariable),
    /// The item doesn't fit the template: a name it has not, a filter that can't work on what it has.
    #[error("{0}")]
    Render(String),
    /// The output is too long, or making it took too long.
    #[error("the template makes more than 1 MiB, or works too long on this item")]
    TooMuch,
}

/// What a template may name, for messages.
const CONTEXT_NAMES: &str = "item, index, run, root_run, job, stage, source, attempt and idempotency_key";

/// An item as templates see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TemplateItem(Value);

impl TemplateItem {
    /// Of a JSON value; keys keep their order.
    pub fn from_json(item: &serde_json::Value) -> Self {
        Self(Value::from(Serde(item)))
    }
}

/// What a template may name.
#[derive(Debug, Clone)]
pub struct TemplateContext<'c> {
    /// `item`: the item as it comes from the source or the stage before.
    pub item: TemplateItem,
    /// `index`: the item's place in its source, counted from 0.
    pub index: u64,
    /// `run`: the run's id.
    pub run: &'c str,
    /// `root_run`: the run that this one retries, or the run itself.
    pub root_run: &'c str,
    /// `job`: the job's name.
    pub job: &'c str,
    /// `stage`: the stage's name.
    pub stage: &'c str,
    /// `source`: the source's name.
    pub source: &'c str,
    /// `attempt`: counted from 1.
    pub attempt: u32,
    /// `idempotency_key`: the same for every attempt, copy and retry of the item.
    pub idempotency_key: &'c str,
}

/// The name under which a template is kept in its own environment.
const NAME: &str = "template";

impl Template {
    /// Compiles a text in which `${NAME}` means nothing.
    pub fn compile(text: &str) -> Result<Self, TemplateError> {
        let template = Self::compile_source(text)?;
        template.find_unknown()?;
        Ok(template)
    }

    fn compile_source(text: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MAX_STEPS));
        // Errors then know which part of the template they are about.
        environment.set_debug(true);
        let not_a_template = |error| syntax_error(&error);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build().map_err(not_a_template)?;
        environment.set_syntax(syntax);
        environment.add_template_owned(NAME, text.to_owned()).map_err(not_a_template)?;
        Ok(Self { environment, secrets: BTreeMap::new() })
    }

    /// Compiles a text with the values of its environment variables, which are read now and once.
    pub fn compile_env(text: &EnvText, env: &EnvLookup<'_>) -> Result<Self, TemplateError> {
        Self::compile_with(text, &|name| env(name).ok_or_else(|| MissingVariable(name.to_owned())))
    }

    /// Whether a text compiles, whatever its environment variables may be.
    pub fn check(text: &EnvText) -> Result<(), TemplateError> {
        Self::compile_with(text, &|_| Ok(String::new())).map(drop)
    }

    fn compile_with(
        text: &EnvText,
        value_of: &dyn Fn(&str) -> Result<String, MissingVariable>,
    ) -> Result<Self, TemplateError> {
        let mut source = String::new();
        let mut secrets = BTreeMap::new();
        for part in text.parts() {
            match part {
                Part::Text(part) => source += part,
                Part::Variable(name) => {
                    let hidden = hidden_name(name);
                    source.extend(["{{ ", &hidden, " }}"]);
                    secrets.insert(hidden, Value::from(value_of(name)?));
                }
                Part::Broken => return Err(TemplateError::Variable),
            }
        }
        let template = Self { secrets, ..Self::compile_source(&source)? };
        template.find_misplaced(text)?;
        template.find_unknown()?;
        Ok(template)
    }

    /// A variable whose tag ended up inside a string, a comment or a raw block is no variable to minijinja.
    fn find_misplaced(&self, text: &EnvText) -> Result<(), TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| syntax_error(&error))?;
        let seen = template.undeclared_variables(false);
        match text.names().find(|name| !seen.contains(&hidden_name(name))) {
            Some(name) => Err(TemplateError::MisplacedVariable(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Names, filters, tests and functions that no item could make known. Filters are looked for by a rendering
    /// of an item that has every field, so one behind a condition may stay unseen until it is reached.
    fn find_unknown(&self) -> Result<(), TemplateError> {
        let trial = TemplateContext {
            item: TemplateItem(Value::from_object(Anything)),
            index: 0,
            run: "",
            root_run: "",
            job: "",
            stage: "",
            source: "",
            attempt: 1,
            idempotency_key: "",
        };
        let values = self.values(&trial);
        let template = self.environment.get_template(NAME).map_err(|error| syntax_error(&error))?;
        let is_known = |name: &String| {
            values.get_attr(name).is_ok_and(|value| !value.is_undefined())
                || self.environment.globals().any(|(global, _)| global == name)
        };
        let unknown: BTreeSet<String> =
            template.undeclared_variables(false).into_iter().filter(|name| !is_known(name)).collect();
        if let Some(name) = unknown.into_iter().next() {
            return Err(TemplateError::UnknownName(name));
        }
        match template.render_captured_to(values, io::sink()) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
                ) =>
            {
                Err(syntax_error(&error))
            }
            _ => Ok(()),
        }
    }

    /// Fills the template in. Errors when the item lacks a name it uses, or when it makes more than
    /// [`MAX_RENDERED_BYTES`].
    pub fn render(&self, context: &TemplateContext<'_>) -> Result<String, TemplateError> {
        let mut output = Bounded(Vec::new());
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(self.values(context), &mut output));
        match rendered {
            Ok(_) => String::from_utf8(output.0).map_err(|error| TemplateError::Render(error.to_string())),
            Err(error) if matches!(error.kind(), ErrorKind::OutOfFuel | ErrorKind::WriteFailure) => {
                Err(TemplateError::TooMuch)
            }
            Err(error) => Err(TemplateError::Render(in_words(&error))),
        }
    }

    fn values(&self, context: &TemplateContext<'_>) -> Value {
        let named = [
            ("item", context.item.0.clone()),
            ("index", Value::from(context.index)),
            ("run", Value::from(context.run)),
            ("root_run", Value::from(context.root_run)),
            ("job", Value::from(context.job)),
            ("stage", Value::from(context.stage)),
            ("source", Value::from(context.source)),
            ("attempt", Value::from(context.attempt)),
            ("idempotency_key", Value::from(context.idempotency_key)),
        ];
        let hidden = self.secrets.iter().map(|(name, value)| (name.as_str(), value.clone()));
        Value::from_pairs(named.into_iter().chain(hidden))
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template(..)")
    }
}

fn hidden_name(variable: &str) -> String {
    format!("__environment_{variable}")
}

fn syntax_error(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax(in_words(error))
}

/// An item with every field, each of them another such item.
#[derive(Debug)]
struct Anything;

impl Object for Anything {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _key: &Value) -> Option<Value> {
        Some(Value::from_object(Self))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(vec![Value::from("1")])
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1")
    }
}

/// What minijinja says, and about which part of the template.
fn in_words(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let part = error.range().and_then(|range| error.template_source()?.get(range));
    let part = part.filter(|part| error.kind() != ErrorKind::SyntaxError && !detail.contains(part));
    let part = part.map_or_else(String::new, |part| format!(", in `{part}`"));
    let line = error.line().filter(|line| *line > 1);
    let line = line.map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    format!("{}{detail}{part}{line}", error.kind())
}

/// Keeps what is written, up to [`MAX_RENDERED_BYTES`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(text: &str, item: &serde_json::Value) -> Result<String, TemplateError> {
        Template::compile(text)?.render(&context(item))
    }

    fn context(item: &serde_json::Value) -> TemplateContext<'static> {
        TemplateContext {
            item: TemplateItem::from_json(item),
            index: 17,
            run: "r1",
            root_run: "r0",
            job: "sync",
            stage: "push",
            source: "main",
            attempt: 2,
            idempotency_key: "r0/push/main/17",
        }
    }

    #[test]
    fn every_name_of_the_context_is_there() {
        let text = "{{ item.id }} {{ index }} {{ run }} {{ root_run }} {{ job }} {{ stage }} {{ source }} \
                    {{ attempt }} {{ idempotency_key }}";
        assert_eq!(render(text, &json!({"id": 5})).unwrap(), "5 17 r1 r0 sync push main 2 r0/push/main/17");
    }

    #[test]
    fn a_missing_name_is_an_error_that_does_not_quote_the_item() {
        let error = render("{{ item.email }}", &json!({"name": "Ann-in-secret"})).unwrap_err();
        assert_eq!(error.to_string(), "undefined value: `item.email` is undefined");
        assert!(!error.to_string().contains("Ann"));
    }

    #[test]
    fn json_keeps_the_order_of_keys_and_nothing_else_is_escaped() {
        let item = json!({"z": 1, "a": {"y": [1, 2.5, null], "b": "é"}});
        let rendered = render("{{ item | tojson }}", &item).unwrap();
        assert_eq!(rendered.replace(": ", ":").replace(", ", ","), item.to_string());
        assert_eq!(render("{{ item }}", &json!("<a> & 'b'")).unwrap(), "<a> & 'b'");
        assert_eq!(
            render("?q={{ item | urlencode }}", &json!("a b&c=/é")).unwrap(),
            "?q=a%20b%26c%3D/%C3%A9"
        );
    }

    #[test]
    fn a_text_that_is_no_template_says_where() {
        let error = Template::compile("a\n{{ item. }}").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(
            Template::compile("{{ item | nosuchfilter }}").unwrap_err().to_string().contains("nosuchfilter")
        );
    }

    #[test]
    fn output_and_work_are_bounded() {
        let long = "{% for a in range(10000) %}{{ item }}{% endfor %}";
        assert_eq!(render(long, &json!("x".repeat(200))), Err(TemplateError::TooMuch));
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert_eq!(render(endless, &json!(1)), Err(TemplateError::TooMuch));
        let large = json!((0..20_000).map(|n| json!({"n": n, "text": "some text"})).collect::<Vec<_>>());
        assert!(render("{{ item | tojson }}", &large).unwrap().len() > 600_000);
    }

    #[test]
    fn a_variable_is_written_as_it_is_even_when_it_looks_like_a_template() {
        let env = |name: &str| (name == "TOKEN").then(|| "{{ item.id }}<&${TOKEN}".to_owned());
        let text = EnvText::new("Bearer ${TOKEN} {{ item.id }} $${x}");
        let template = Template::compile_env(&text, &env).unwrap();
        assert_eq!(
            template.render(&context(&json!({"id": 5}))).unwrap(),
            "Bearer {{ item.id }}<&${TOKEN} 5 ${x}"
        );
        assert!(!format!("{template:?}").contains("item"));
        let missing = Template::compile_env(&EnvText::new("${OTHER}"), &env).unwrap_err();
        assert_eq!(missing, TemplateError::Missing(MissingVariable("OTHER".to_owned())));
    }

    #[test]
    fn a_variable_is_refused_where_it_could_not_be_filled_in() {
        for text in ["{{ '${TOKEN}' | upper }}", "{# ${TOKEN} #}", "{% raw %}${TOKEN}{% endraw %}"] {
            let error = Template::check(&EnvText::new(text)).unwrap_err();
            assert_eq!(error, TemplateError::MisplacedVariable("TOKEN".to_owned()), "{text}");
        }
        assert!(Template::check(&EnvText::new("{{ ${TOKEN} }}")).is_err());
        assert_eq!(Template::check(&EnvText::new("${ TOKEN }")), Err(TemplateError::Variable));
        let good = "{% if item.a %}Bearer ${TOKEN}{% endif %}";
        assert_eq!(Template::check(&EnvText::new(good)), Ok(()));
    }
}
