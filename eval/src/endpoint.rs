//! A server with a chat interface as `OpenAI`'s: its address, its key, and one request to it.
//!
//! Results, messages and files name the server by scheme, host and path alone: what else an address may hold, a name, a
//! password or a query, may be secret, as the key is.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;
use flamingo_dataset::report::base64;
use flamingo_dataset::sha256_hex;
use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::runtime::{Builder, Runtime};

use crate::back_off::{ASKED_MAX, retry_after};
use crate::chat::{answer, quoted, refused};
use crate::error::EvalError;
use crate::pace::Pace;
use crate::subject::{ModelCard, Said};

/// What a model is told first.
pub const INSTRUCTION: &str = "The message of the user ends where an answer is missing. Reply with that answer \
                               alone, in the way of the examples where there are any.";

/// Bytes of a reply that are read; answers have some thousands.
const REPLY_BYTES_MAX: usize = 8 << 20;

/// What stands for a secret in messages.
const HIDDEN: &str = "[hidden]";

/// How a server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EndpointOptions {
    /// Address of the server of an `openai:` model, such as `http://127.0.0.1:8000/v1`. Its key is read from the environment
    /// variable `OPENAI_API_KEY`, if there is one.
    // A text: the parser of the command line would repeat an address that is wrong, with the secrets in it.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Most requests at a time. It begins with a few, goes up while the server answers and down by half when it
    /// does not (429, 5xx, timeouts).
    #[arg(long, default_value_t = 32, value_name = "N", requires = "endpoint")]
    pub concurrency_max: usize,
    /// How often a request is repeated before the evaluation stops; what was answered by then is kept. Pauses before that
    /// double from half a second to a minute, and are as long as the server asks, up to five minutes.
    #[arg(long, default_value_t = 8, value_name = "N", requires = "endpoint")]
    pub retries: u32,
    /// Seconds that an answer may take.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", requires = "endpoint",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// What the model is told first.
    #[arg(long, default_value = INSTRUCTION, hide_default_value = true, value_name = "TEXT",
          requires = "endpoint")]
    pub instruction: String,
}

impl EndpointOptions {
    /// The address as it was given; none without one.
    ///
    /// # Errors
    /// When it is no address of HTTP; the message does not repeat it.
    pub fn address(&self) -> Result<Option<Url>, String> {
        let Some(text) = &self.endpoint else { return Ok(None) };
        let address = Url::parse(text).map_err(|error| format!("--endpoint: {error}"))?;
        if !matches!(address.scheme(), "http" | "https") || address.host_str().is_none() {
            return Err("--endpoint must be an http:// or https:// address".to_owned());
        }
        Ok(Some(address))
    }
}

/// A server with a model.
pub struct Endpoint {
    /// The model's name at the server.
    pub(crate) model: String,
    pub(crate) options: EndpointOptions,
    /// Where requests go.
    address: Url,
    /// The address without what may be secret.
    pub(crate) place: String,
    client: Client,
    key: Option<HeaderValue>,
    /// What no message may hold.
    secrets: Vec<String>,
    pub(crate) runtime: Runtime,
    pub(crate) pace: RefCell<Pace>,
}

/// Why there is no answer.
pub(crate) enum Trouble {
    /// It may go away; after this time, if the server says so.
    Passing { what: String, pause: Option<Duration> },
    /// It will not.
    Lasting(String),
}

impl Trouble {
    fn passing(what: String) -> Self {
        Self::Passing { what, pause: None }
    }
}

impl Endpoint {
    /// A client for a server; nothing is sent yet.
    ///
    /// # Errors
    /// When no address is given, it is none of HTTP, the key is no text of ASCII, or there is a password beside it.
    pub fn open(
        model: &str,
        options: &EndpointOptions,
        key: Option<&str>,
    ) -> Result<Self, EvalError> {
        let unfit = |problem: &str| EvalError::Unfit {
            what: format!("--model openai:{model}"),
            problem: problem.to_owned(),
        };
        let base = options.address().map_err(|problem| unfit(&problem))?;
        let base = base.ok_or_else(|| unfit("needs --endpoint URL"))?;
        if key.is_some() && !(base.username().is_empty() && base.password().is_none()) {
            let problem = "a name or password in --endpoint beside OPENAI_API_KEY: a request takes one of them";
            return Err(unfit(problem));
        }
        let mut address = base.clone();
        address.set_path(&format!("{}/chat/completions", base.path().trim_end_matches('/')));
        let place = place_of(&address);
        let is_here = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let client = client(options, is_here).map_err(|error| unfit(&chain(&error)))?;
        if key.is_some() && base.scheme() == "http" && !is_here {
            eprintln!("warning: OPENAI_API_KEY goes to {place} without encryption");
        }
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Self {
            runtime: runtime.map_err(EvalError::file("wait for", &place))?,
            pace: RefCell::new(Pace::new(options.concurrency_max)),
            model: model.to_owned(),
            options: options.clone(),
            key: key.map(bearer).transpose().map_err(unfit)?,
            secrets: secrets(&address, key),
            address,
            place,
            client,
        })
    }

    /// What results say of it. Whether the server changes the model is not known here.
    pub fn card(&self) -> ModelCard {
        let name = format!("openai:{} at {}", self.model, self.place);
        let decides = format!("{name}\n{}", self.options.instruction);
        ModelCard {
            sha256: sha256_hex(decides.as_bytes()),
            name,
            device: "a server with a chat interface".to_owned(),
        }
    }

    /// Sends a request once.
    pub(crate) async fn send(&self, body: &str) -> Result<Said, Trouble> {
        let mut request = self.client.post(self.address.clone());
        request = request.header(CONTENT_TYPE, "application/json").body(body.to_owned());
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key.clone());
        }
        let mut response = request.send().await.map_err(|error| Trouble::passing(chain(&error)))?;
        let body = self.read(&mut response).await?;
        let status = response.status();
        if status.is_success() {
            return answer(&body).map_err(|what| Trouble::passing(self.without_secrets(&what)));
        }
        let refused = (status == StatusCode::BAD_REQUEST).then(|| refused(&body)).flatten();
        if let Some(ending) = refused {
            return Ok(Said { text: String::new(), ending: Some(ending) });
        }
        let what = format!("{status}: {}", self.quoted(&body));
        Err(if may_pass(status) {
            passing(what, response.headers())
        } else {
            Trouble::Lasting(what)
        })
    }

    async fn read(&self, response: &mut Response) -> Result<Vec<u8>, Trouble> {
        let mut body = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|error| Trouble::passing(chain(&error)))?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len() + chunk.len() > REPLY_BYTES_MAX {
                let begin = self.quoted(&body);
                let what = format!("a reply of more than {REPLY_BYTES_MAX} bytes: {begin}");
                return Err(Trouble::Lasting(what));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// The beginning of what a server says, which may repeat what it was sent.
    fn quoted(&self, body: &[u8]) -> String {
        // Before it is cut: half a key is half a secret.
        quoted(self.without_secrets(&String::from_utf8_lossy(body)).as_bytes())
    }

    fn without_secrets(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }
}

fn client(options: &EndpointOptions, is_here: bool) -> reqwest::Result<Client> {
    let mut client = Client::builder()
        .timeout(Duration::from_secs(options.timeout))
        // A key is for this server alone.
        .redirect(Policy::none());
    if is_here {
        client = client.no_proxy();
    }
    client.build()
}

fn bearer(key: &str) -> Result<HeaderValue, &'static str> {
    let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| "OPENAI_API_KEY has characters that no key has")?;
    header.set_sensitive(true);
    Ok(header)
}

/// Scheme, host and path of an address.
fn place_of(address: &Url) -> String {
    let port = address.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = address.host_str().unwrap_or_default();
    format!("{}://{host}{port}{}", address.scheme(), address.path())
}

/// Characters from which on a name or a value of a query is taken for a secret: what is shorter stands in other words, too.
const SECRET_LEN_MIN: usize = 4;

/// The key, the name and password and the values of the query of an address, as they are sent and as they are meant; longer
/// ones first, as others may be parts of them.
fn secrets(address: &Url, key: Option<&str>) -> Vec<String> {
    let meant = |sent: &str| percent_decode_str(sent).decode_utf8_lossy().into_owned();
    let (name, password) = (address.username(), address.password().unwrap_or_default());
    let basic = format!("{}:{}", meant(name), meant(password));
    let mut secrets: Vec<String> = [name, password].map(meant).to_vec();
    secrets.extend(address.query_pairs().map(|(_, value)| value.into_owned()));
    let sent = address.query().unwrap_or_default().split('&').filter_map(|it| it.split_once('='));
    secrets.extend(sent.map(|(_, value)| value.to_owned()));
    secrets.extend([name.to_owned(), base64(basic.as_bytes())]);
    secrets.retain(|secret| secret.chars().count() >= SECRET_LEN_MIN);
    // However short they are.
    let always = [meant(password), password.to_owned(), key.unwrap_or_default().to_owned()];
    secrets.extend(always.into_iter().filter(|secret| !secret.is_empty()));
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets
}

/// Whether the same request may be answered later.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::TOO_EARLY
        )
}

/// A failure that may pass, after the pause that the server asks for, unless that is too long to be waited for.
fn passing(what: String, headers: &HeaderMap) -> Trouble {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    match value.and_then(|value| retry_after(value, SystemTime::now())) {
        Some(pause) if pause > ASKED_MAX => {
            let (asked, most) = (pause.as_secs(), ASKED_MAX.as_secs());
            let asks = format!("asks for a pause of {asked} s, at most {most} s are waited");
            Trouble::Lasting(format!("{what}; {asks}"))
        }
        pause => Trouble::Passing { what, pause },
    }
}

/// An error with its causes, without the address, which may hold a secret.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "no connection".to_owned()
    } else {
        "the answer was cut off".to_owned()
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_scheme_host_and_path() {
        let check = |address: &str, expected: &str| {
            assert_eq!(place_of(&Url::parse(address).unwrap()), expected, "{address}");
        };
        check("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1");
        check("https://me:pass@host.org/a/b?api-version=2&key=k#x", "https://host.org/a/b");
        check("https://[::1]:9/", "https://[::1]:9/");
    }

    #[test]
    fn wrong_addresses_are_not_repeated() {
        let options = |address: &str| EndpointOptions {
            endpoint: Some(address.to_owned()),
            concurrency_max: 1,
            retries: 0,
            timeout: 1,
            instruction: String::new(),
        };
        for address in ["http://me:secret@host:99999/v1", "secret", "ftp://me:secret@host/"] {
            let problem = options(address).address().unwrap_err();
            assert!(problem.starts_with("--endpoint"), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
