//! The language of a text, told by its letters (whatlang: trigrams and alphabets, 70 languages).

/// Bytes of a text that are looked at: more makes the answer hardly better, and slower.
const SAMPLE_BYTES: usize = 1000;

/// A language and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Language {
    /// ISO 639-1 code where there is one, else ISO 639-3.
    pub code: &'static str,
    /// Confidence, 0 to 1.
    pub score: f32,
}

/// The language of a text; none where it has no letters.
pub fn tell(text: &str) -> Option<Language> {
    let sample = &text[..text.floor_char_boundary(SAMPLE_BYTES)];
    let found = whatlang::detect(sample)?;
    Some(Language { code: short_code(found.lang().code()), score: found.confidence() as f32 })
}

/// The languages that can be told, by their ISO 639-3 and ISO 639-1 codes.
const CODES: [(&str, &str); 70] = [
    ("afr", "af"),
    ("aka", "ak"),
    ("amh", "am"),
    ("ara", "ar"),
    ("aze", "az"),
    ("bel", "be"),
    ("ben", "bn"),
    ("bul", "bg"),
    ("cat", "ca"),
    ("ces", "cs"),
    ("cmn", "zh"),
    ("cym", "cy"),
    ("dan", "da"),
    ("deu", "de"),
    ("ell", "el"),
    ("eng", "en"),
    ("epo", "eo"),
    ("est", "et"),
    ("fin", "fi"),
    ("fra", "fr"),
    ("guj", "gu"),
    ("heb", "he"),
    ("hin", "hi"),
    ("hrv", "hr"),
    ("hun", "hu"),
    ("hye", "hy"),
    ("ind", "id"),
    ("ita", "it"),
    ("jav", "jv"),
    ("jpn", "ja"),
    ("kan", "kn"),
    ("kat", "ka"),
    ("khm", "km"),
    ("kor", "ko"),
    ("lat", "la"),
    ("lav", "lv"),
    ("lit", "lt"),
    ("mal", "ml"),
    ("mar", "mr"),
    ("mkd", "mk"),
    ("mya", "my"),
    ("nep", "ne"),
    ("nld", "nl"),
    ("nob", "nb"),
    ("ori", "or"),
    ("pan", "pa"),
    ("pes", "fa"),
    ("pol", "pl"),
    ("por", "pt"),
    ("ron", "ro"),
    ("rus", "ru"),
    ("sin", "si"),
    ("slk", "sk"),
    ("slv", "sl"),
    ("sna", "sn"),
    ("spa", "es"),
    ("srp", "sr"),
    ("swe", "sv"),
    ("tam", "ta"),
    ("tel", "te"),
    ("tgl", "tl"),
    ("tha", "th"),
    ("tuk", "tk"),
    ("tur", "tr"),
    ("ukr", "uk"),
    ("urd", "ur"),
    ("uzb", "uz"),
    ("vie", "vi"),
    ("yid", "yi"),
    ("zul", "zu"),
];

fn short_code(code: &'static str) -> &'static str {
    CODES.iter().find(|(long, _)| *long == code).map_or(code, |(_, short)| short)
}

/// Whether a code of a plan is one that can be told.
pub(crate) fn is_known(code: &str) -> bool {
    CODES.iter().any(|(_, short)| *short == code)
        || whatlang::Lang::from_code(code).is_some_and(|lang| short_code(lang.code()) == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(tell(text).map(|language| language.code), expected, "{text}");
        };
        check(
            "The telescope was built in the mountains, far from the lights of the city.",
            Some("en"),
        );
        check(
            "Das Teleskop wurde in den Bergen gebaut, weit weg von den Lichtern der Stadt.",
            Some("de"),
        );
        check(
            "El telescopio fue construido en las montañas, lejos de las luces de la ciudad.",
            Some("es"),
        );
        check("Телескоп был построен в горах, далеко от огней города.", Some("ru"));
        check("望遠鏡は街の明かりから遠く離れた山の中に建てられました。", Some("ja"));
        check("12 + 3 = 15", None);
        check("", None);
    }

    #[test]
    fn every_language_has_a_code() {
        for lang in whatlang::Lang::all() {
            let code = short_code(lang.code());
            assert!(
                is_known(code) && tell("a b c").is_none_or(|found| is_known(found.code)),
                "{code}"
            );
        }
        assert!(!is_known("eng") && !is_known("xx"));
    }
}
