//! Requests and replies of the chat interface that `OpenAI` defined and others took over
//! (`POST /chat/completions`): pure functions on values.

use flamingo_dataset::report::base64;
use flamingo_dataset::{CorpusError, EncodedImage, image_png};
use serde::Deserialize;
use serde_json::{Value, json};

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

/// The answer in a reply; empty where the model refuses or its server keeps the answer back.
///
/// # Errors
/// What is wrong with it, where it is no reply.
pub fn answer(body: &[u8]) -> Result<String, String> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| {
        format!("an answer that is no chat completion ({error}): {}", quoted(body))
    })?;
    let Some(choice) = reply.choices.into_iter().next() else {
        return Err(format!("an answer without choices: {}", quoted(body)));
    };
    let text = match choice.message.content {
        Some(Content::Text(text)) => Some(text),
        Some(Content::Parts(parts)) => Some(parts.into_iter().filter_map(|it| it.text).collect()),
        None => None,
    };
    let is_kept_back = choice.finish_reason.as_deref() == Some("content_filter");
    match text {
        Some(text) => Ok(text),
        None if is_kept_back || choice.message.refusal.is_some() => Ok(String::new()),
        None => Err(format!("an answer without text: {}", quoted(body))),
    }
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
        let check = |message: &str, end: &str, expected: Result<&str, &str>| {
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
        check(r#"{"content": " red "}"#, "stop", Ok(" red "));
        check(r#"{"content": [{"type": "text", "text": "a"}, {"text": "b"}]}"#, "stop", Ok("ab"));
        check(r#"{"content": null, "refusal": "no"}"#, "stop", Ok(""));
        check(r#"{"content": null}"#, "content_filter", Ok(""));
        check(r#"{"content": null}"#, "stop", Err("without text"));
        check(r#"{"content": 3}"#, "stop", Err("no chat completion"));
        assert!(answer(b"{\"choices\": []}").unwrap_err().contains("without choices"));
        assert!(answer(b"<html>\n\tbusy").unwrap_err().ends_with("<html> busy"));
        let long = answer(&[b'x'; 5000]).unwrap_err();
        assert!(long.len() < 500 && long.ends_with("..."), "{long}");
    }

    #[test]
    fn pictures_that_servers_do_not_know_become_png() {
        let image = |bytes: &[u8]| EncodedImage { bytes: bytes.to_vec().into(), path: None };
        assert_eq!(data_url(&image(&[0xff, 0xd8, 0])).unwrap(), "data:image/jpeg;base64,/9gA");
        assert!(data_url(&image(b"none")).is_err());
    }
}
