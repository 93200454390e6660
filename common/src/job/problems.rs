//! Problems of a job file, all at once, each with its line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1; 0 when the problem is the file as a whole.
    pub line: usize,
    /// Where in the file's text, in bytes.
    pub span: Range<usize>,
    /// What is wrong, naming the key. One line.
    pub message: String,
    /// What to do about it. One line.
    pub help: Option<String>,
}

/// Every problem of one job file. Its `Display` has a line for each, as [`Problems::lines`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file, as given.
    pub path: PathBuf,
    /// The file's text; empty when it could not be read.
    pub text: Arc<str>,
    /// The problems in order of their lines.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Problems of the file `path` with this text, in order of their lines.
    pub(super) fn new(path: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.span.start));
        Self { path: path.to_owned(), text: text.into(), problems }
    }

    /// The one problem of a file that has no text to point at.
    pub(super) fn whole_file(path: &Path, message: String) -> Self {
        Self::new(path, "", vec![Problem { line: 0, span: 0..0, message, help: None }])
    }

    /// Each problem on one line, for logs, pipes and tests: `job.toml:12: unknown key ...; did you mean ...?`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| {
            let line = if problem.line > 0 { format!(":{}", problem.line) } else { String::new() };
            let help = problem.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
            format!("{}{line}: {}{help}", self.path.display(), problem.message)
        })
    }

    /// Each problem with an excerpt of the file and a mark where it is, for a terminal of `width` columns,
    /// coloured or not.
    pub fn render(&self, width: usize, colour: bool) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
        let source = NamedSource::new(self.path.display().to_string(), Arc::clone(&self.text));
        let mut text = String::new();
        for problem in &self.problems {
            let view = View { problem, source: &source };
            if handler.render_report(&mut text, &view).is_err() {
                text += &problem.message;
            }
        }
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, line) in self.lines().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One problem as miette draws it.
#[derive(Debug)]
struct View<'p> {
    problem: &'p Problem,
    source: &'p NamedSource<Arc<str>>,
}

impl fmt::Display for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for View<'_> {}

impl Diagnostic for View<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        (self.problem.line > 0).then_some(self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_with_span(None, self.problem.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}
