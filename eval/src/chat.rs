//! Requests and replies of the chat interface that `OpenAI` defined and others took over
//! (`POST /chat/completions`): pure functions on values.

use flamingo_dataset::report::base64;
use flamingo_dataset::{CorpusError, EncodedImage, image_png};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::subject::{Ending, OutOfContext, Said};

/// Strings that may end an answer: servers take no more.
const STOPS_MAX: usize = 4;

/// Characters of a server's message that ours repeat.
const QUOTED_MAX: usize = 300;

/// A place of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// A picture as a `data:` address.
    Image(String),
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    /// Name of the model at the server.
    pub model: &'a str,
    /// What the model is told first.
    pub instruction: &'a str,
    /// The prompt.
    pub parts: &'a [Part],
    /// Most tokens of the answer.
    pub tokens_max: usize,
    /// The answer ends where one of these begins.
    pub stop: &'a [String],
}

impl Chat<'_> {
    /// The body of the request. Temperature 0: the same question has the same answer, as far as the server can.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": [
                { "role": "system", "content": self.instruction },
                { "role": "user", "content": content(self.parts) },
            ],
            "temperature": 0,
            "max_tokens": self.tokens_max,
        });
        if !self.stop.is_empty() {
            body["stop"] = json!(&self.stop[..self.stop.len().min(STOPS_MAX)]);
        }
        body
    }
}

/// Texts that follow each other are one; without pictures there is one text, which servers for text understand, too.
fn content(parts: &[Part]) -> Value {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(text),
            _ => joined.push(part.clone()),
        }
    }
    if let [Part::Text(text)] = &joined[..] {
        return json!(text);
    }
    let one = |part: &Part| match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image(address) => json!({ "type": "image_url", "image_url": { "url": address } }),
    };
    joined.iter().map(one).collect()
}

/// A picture as a `data:` address: JPEG, PNG, WebP and GIF as they are, other formats as PNG.
///
/// # Errors
/// When the bytes are no picture.
pub fn data_url(image: &EncodedImage) -> Result<String, CorpusError> {
    let bytes = &image.bytes[..];
    let known = match bytes {
        [0xff, 0xd8, ..] => Some("jpeg"),
        [0x89, b'P', b'N', b'G', ..] => Some("png"),
        [b'G', b'I', b'F', ..] => Some("gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        _ => None,
    };
    Ok(match known {
        Some(kind) => format!("data:image/{kind};base64,{}", base64(bytes)),
        None => format!("data:image/png;base64,{}", base64(&image_png(bytes)?)),
    })
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Deserialize)]
struct ContentPart {
    text: Option<String>,
}

/// The answer in a reply; empty where the model refuses, its server keeps the answer back, or the model used up its tokens
/// before it wrote any, as those do that think first.
///
/// # Errors
/// What is wrong with it, where it is no reply.
pub fn answer(body: &[u8]) -> Result<Said, String> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| {
        format!("an answer that is no chat completion ({error}): {}", quoted(body))
    })?;
    let Some(Choice { message, finish_reason }) = reply.choices.into_iter().next() else {
        return Err(format!("an answer without choices: {}", quoted(body)));
    };
    let ending = match finish_reason.as_deref() {
        Some("length") => Some(Ending::Length),
        Some("content_filter") => Some(Ending::ContentFilter),
        _ => None,
    };
    let ending = ending.or(message.refusal.map(|_| Ending::ContentFilter));
    match message.content {
        Some(Content::Text(text)) => Ok(Said { text, ending }),
        Some(Content::Parts(parts)) => {
            Ok(Said { text: parts.into_iter().filter_map(|it| it.text).collect(), ending })
        }
        None if ending.is_some() => Ok(Said { text: String::new(), ending }),
        None => Err(format!("an answer without text: {}", quoted(body))),
    }
}

/// What a server says of a request that it refuses, as `OpenAI` (`error`) and vLLM (at the top) write it.
#[derive(Deserialize)]
struct Refusal {
    error: Option<Fault>,
    #[serde(flatten)]
    fault: Fault,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fault {
    code: Value,
    r#type: Value,
    message: Value,
    innererror: Value,
    n_prompt_tokens: Option<usize>,
    n_ctx: Option<usize>,
}

/// What the body of a 400 means that is no fault of the request's form: the prompt is kept from the model by a filter, or
/// is longer than what the model holds. None of any other.
pub fn refused(body: &[u8]) -> Option<Ending> {
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    let fault = refusal.error.unwrap_or(refusal.fault);
    let says = |value: &Value, text: &str| value.as_str() == Some(text);
    let is_filtered = says(&fault.code, "content_filter")
        || says(&fault.code, "content_policy_violation")
        || says(&fault.innererror["code"], "ResponsibleAIPolicyViolation");
    if is_filtered {
        return Some(Ending::ContentFilter);
    }
    let message = fault.message.as_str().unwrap_or_default();
    // OpenAI, llama.cpp, vLLM, which has no code for it.
    let is_too_long = says(&fault.code, "context_length_exceeded")
        || says(&fault.r#type, "exceed_context_size_error")
        || message.contains("maximum context length is")
        || message.contains("longer than the maximum model length");
    let counted = fault.n_prompt_tokens.zip(fault.n_ctx);
    let counts = counted.or_else(|| counts_in(message));
    let longest = counts.map(|(needed, context)| OutOfContext { needed, context });
    is_too_long.then_some(Ending::OutOfContext(longest))
}

/// Tokens that were needed and that a model holds, in a message of `OpenAI` or vLLM.
fn counts_in(message: &str) -> Option<(usize, usize)> {
    let pattern = r"maximum context length is (\d+) tokens\D+(?:requested|resulted in) (\d+)";
    let found = Regex::new(pattern).ok()?.captures(message)?;
    Some((found[2].parse().ok()?, found[1].parse().ok()?))
}

/// The beginning of what a server says, on one line.
pub fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let plain = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = plain.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_texts_alternate_and_texts_are_joined() {
        let text = |text: &str| Part::Text(text.to_owned());
        let image = |name: &str| Part::Image(format!("data:{name}"));
        let parts = [image("a"), text("Output: x"), text("\n"), image("b"), text("Output:")];
        let stop: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let chat =
            Chat { model: "m", instruction: "go on", parts: &parts, tokens_max: 7, stop: &stop };
        let body = chat.body();
        let content = &body["messages"][1]["content"];
        assert_eq!(content[1], json!({ "type": "text", "text": "Output: x\n" }));
        assert_eq!(content[2]["image_url"]["url"], "data:b");
        assert_eq!(content.as_array().unwrap().len(), 4);
        assert_eq!((&body["max_tokens"], &body["temperature"]), (&json!(7), &json!(0)));
        assert_eq!(body["stop"].as_array().unwrap().len(), 4);
        let plain = Chat { parts: &[text("a"), text("b")], stop: &[], ..chat }.body();
        assert_eq!(plain["messages"][1]["content"], "ab");
        assert_eq!(plain.get("stop"), None);
    }

    #[test]
    fn replies_of_all_kinds_are_read() {
        let check = |message: &str, end: &str, expected: Result<Said, &str>| {
            let body = format!(
                r#"{{"choices": [{{"message": {message}, "finish_reason": "{end}"}}], "usage": 1}}"#
            );
            let found = answer(body.as_bytes());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                (found, _) => panic!("{message}: {found:?}"),
            }
        };
        check(r#"{"content": " red "}"#, "stop", Ok(Said::whole(" red ")));
        let parts = r#"{"content": [{"type": "text", "text": "a"}, {"text": "b"}]}"#;
        check(parts, "stop", Ok(Said::whole("ab")));
        let empty = |ending| Ok(Said { text: String::new(), ending: Some(ending) });
        check(r#"{"content": null, "refusal": "no"}"#, "stop", empty(Ending::ContentFilter));
        check(r#"{"content": null}"#, "content_filter", empty(Ending::ContentFilter));
        check(r#"{"content": null}"#, "length", empty(Ending::Length));
        let cut = Said { text: "a dog on".to_owned(), ending: Some(Ending::Length) };
        check(r#"{"content": "a dog on"}"#, "length", Ok(cut));
        check(r#"{"content": null}"#, "stop", Err("without text"));
        check(r#"{"content": 3}"#, "stop", Err("no chat completion"));
        assert!(answer(b"{\"choices\": []}").unwrap_err().contains("without choices"));
        assert!(answer(b"<html>\n\tbusy").unwrap_err().ends_with("<html> busy"));
        let long = answer(&[b'x'; 5000]).unwrap_err();
        assert!(long.len() < 500 && long.ends_with("..."), "{long}");
    }

    #[test]
    fn prompts_that_are_filtered_or_too_long_are_told_from_wrong_requests() {
        let check = |body: &str, expected: Option<Ending>| {
            assert_eq!(refused(body.as_bytes()), expected, "{body}");
        };
        let too_long =
            |needed, context| Some(Ending::OutOfContext(Some(OutOfContext { needed, context })));
        let filtered = Some(Ending::ContentFilter);
        check(r#"{"error": {"code": "content_filter", "message": "m", "status": 400}}"#, filtered);
        let inner =
            r#"{"error": {"code": null, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}"#;
        check(inner, filtered);
        let openai = r#"{"error": {"message": "This model's maximum context length is 4096 tokens. However, your messages resulted in 4200 tokens.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}"#;
        check(openai, too_long(4200, 4096));
        let vllm = r#"{"object": "error", "message": "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens (2200 in the messages, 100 in the completion).", "type": "BadRequestError", "param": null, "code": 400}"#;
        check(vllm, too_long(2300, 2048));
        let llama = r#"{"error": {"code": 400, "message": "request (13392 tokens) exceeds the available context size", "type": "exceed_context_size_error", "n_prompt_tokens": 13392, "n_ctx": 8192}}"#;
        check(llama, too_long(13392, 8192));
        let bare = r#"{"error": {"code": "context_length_exceeded", "message": "too long"}}"#;
        check(bare, Some(Ending::OutOfContext(None)));
        check(r#"{"error": {"code": "model_not_found", "message": "no such model"}}"#, None);
        check(r#"{"error": "content_filter"}"#, None);
        check("too long", None);
        check("[]", None);
    }

    #[test]
    fn pictures_that_servers_do_not_know_become_png() {
        let image = |bytes: &[u8]| EncodedImage { bytes: bytes.to_vec().into(), path: None };
        assert_eq!(data_url(&image(&[0xff, 0xd8, 0])).unwrap(), "data:image/jpeg;base64,/9gA");
        assert!(data_url(&image(b"none")).is_err());
    }
}
