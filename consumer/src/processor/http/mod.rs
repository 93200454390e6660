//! `type = "http"`: one request for each item.

mod answer;
mod client;
mod retry_after;

pub(super) use client::client;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use reqwest::{Client, Method, Request, Url};
use windrow_common::envelope::completion::ItemError;
use windrow_common::job::template::Template;
use windrow_common::job::{EnvLookup, HttpSpec, Redactor};

use super::rendering::{Rendering, compile, redactor};
use super::{Attempt, BuildFault, Item, Processor, Retry};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that follow from the request itself. Set by hand, they could only contradict it.
const NOT_TO_BE_SET: [HeaderName; 3] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING];

/// A longer header value fails its item.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Sends a request for each item and takes the answer as its output.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    method: Method,
    url: Template,
    headers: Vec<(HeaderName, Template)>,
    body: Option<Template>,
    retry_statuses: Vec<u16>,
    max_response_bytes: u64,
    redactor: Redactor,
}

impl Http {
    pub(super) fn new(spec: &HttpSpec, client: Client, env: &EnvLookup<'_>) -> Result<Self, BuildFault> {
        let mut headers = Vec::new();
        for (name, value) in &spec.headers {
            let key = format!("headers.{name}");
            let name = HeaderName::from_bytes(name.as_bytes())
                .ok()
                .filter(|name| !NOT_TO_BE_SET.contains(name))
                .ok_or_else(|| BuildFault::Header(name.clone()))?;
            headers.push((name, compile(&key, value, env)?));
        }
        let texts = std::iter::once(&spec.url).chain(spec.headers.values()).chain(&spec.body);
        Ok(Self {
            client,
            method: Method::from_bytes(spec.method.as_bytes())
                .map_err(|_| BuildFault::Method(spec.method.clone()))?,
            url: compile("url", &spec.url, env)?,
            headers,
            body: spec.body.as_ref().map(|body| compile("body", body, env)).transpose()?,
            retry_statuses: spec.retry_statuses.clone(),
            max_response_bytes: spec.max_response_bytes,
            redactor: redactor(texts, env),
        })
    }

    async fn call(&self, item: &Item) -> Result<Attempt, Attempt> {
        let request = self.request(item)?;
        let response = self.client.execute(request).await.map_err(client::no_answer)?;
        Ok(answer::read(response, &self.retry_statuses, self.max_response_bytes).await)
    }

    fn request(&self, item: &Item) -> Result<Request, Attempt> {
        let rendering = Rendering::of(item)?;
        let url = url(&rendering.fill("url", &self.url)?)?;
        let mut request = Request::new(self.method.clone(), url);
        if let Some(body) = &self.body {
            // Bounded by what a template may make.
            *request.body_mut() = Some(rendering.fill("body", body)?.into());
        }
        *request.headers_mut() = self.headers(&rendering)?;
        Ok(request)
    }

    /// The job's headers, and those every request has unless the job sets them.
    fn headers(&self, rendering: &Rendering<'_>) -> Result<HeaderMap, Attempt> {
        let mut headers = HeaderMap::new();
        for (name, template) in &self.headers {
            let value = rendering.fill(name.as_str(), template)?;
            headers.insert(name.clone(), header_value(name.as_str(), &value)?);
        }
        if self.body.is_some() {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        }
        if !headers.contains_key(IDEMPOTENCY_KEY) {
            headers.insert(IDEMPOTENCY_KEY, header_value("idempotency-key", rendering.idempotency_key())?);
        }
        Ok(headers)
    }

    /// The request as text.
    fn described(&self, item: &Item) -> Result<String, Attempt> {
        let rendering = Rendering::of(item)?;
        let mut shown_url = rendering.fill("url", &self.url)?;
        if !shown_url.contains("${") {
            // With a variable shown by its name it is no URL yet.
            shown_url = url(&shown_url)?.into();
        }
        let mut lines = vec![format!("{} {shown_url}", self.method)];
        for (name, value) in &self.headers(&rendering)? {
            lines.push(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
        if let Some(body) = &self.body {
            lines.push(format!("\n{}", rendering.fill("body", body)?));
        }
        Ok(lines.join("\n"))
    }
}

impl Processor for Http {
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
        async move { self.call(item).await.unwrap_or_else(|failed| failed).redacted(&self.redactor) }.boxed()
    }

    fn describe(&self, item: &Item) -> Result<String, ItemError> {
        let text = self.described(item).map_err(Attempt::into_error)?;
        Ok(self.redactor.redact(&text).into_owned())
    }
}

fn url(text: &str) -> Result<Url, Attempt> {
    let url = Url::parse(text).map_err(|error| refused(format!("`url` is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("`url` must begin with `http://` or `https://`".to_owned()));
    }
    Ok(url)
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Attempt> {
    if value.len() > MAX_HEADER_BYTES {
        return Err(refused(format!("header `{name}` is over {MAX_HEADER_BYTES} bytes")));
    }
    let mut header = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
        refused(format!(
            "header `{name}` would have a line break or another control character; \
             if it comes from an environment variable, see whether that ends in a line break"
        ))
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// A request that cannot be sent, and could not be sent again.
fn refused(message: String) -> Attempt {
    Attempt::failed("request", message, Retry::Never).nothing_done()
}

#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
