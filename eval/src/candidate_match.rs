//! Which candidate a written answer means: for models that can be asked, but give no likelihoods.
//!
//! An answer that is a candidate, character by character, means it. Else letters and digits count, in lower case; other
//! characters only separate words, and an answer without words means nothing. An answer with the words of one candidate alone
//! means that. Else the candidates that stand in the answer as whole words are looked for; what is part of a longer one that stands
//! there is not counted (`dog` in `hot dog`). Just one left is meant; none or several is no match.

/// The number of the candidate that is meant, from 0; none where that cannot be told.
pub fn meant_candidate(answer: &str, candidates: &[String]) -> Option<usize> {
    let said = answer.trim();
    let mut exact = (0..candidates.len()).filter(|&i| candidates[i].trim() == said);
    if let Some(first) = exact.next().filter(|_| !said.is_empty()) {
        return exact.next().is_none().then_some(first);
    }
    let answer = words(said);
    if answer.is_empty() {
        return None;
    }
    let all: Vec<Vec<String>> = candidates.iter().map(|candidate| words(candidate)).collect();
    let mut same = (0..all.len()).filter(|&i| all[i] == answer);
    if let Some(first) = same.next() {
        return same.next().is_none().then_some(first);
    }
    let found = (0..all.len()).filter(|&i| holds(&answer, &all[i]));
    let found: Vec<usize> = found.collect();
    let is_part = |i: usize| found.iter().any(|&j| j != i && holds(&all[j], &all[i]));
    let mut whole = found.iter().copied().filter(|&i| !is_part(i));
    let first = whole.next()?;
    whole.next().is_none().then_some(first)
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Whether `part` stands in `whole`, word by word. Nothing stands nowhere.
fn holds(whole: &[String], part: &[String]) -> bool {
    !part.is_empty() && whole.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_found_and_what_is_not_said_is_not_guessed() {
        let check = |candidates: &[&str], answer: &str, expected: Option<usize>| {
            let candidates: Vec<String> = candidates.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(meant_candidate(answer, &candidates), expected, "{answer}");
        };
        let yes_no = ["yes", "no"];
        check(&yes_no, "Yes.", Some(0));
        check(&yes_no, "**No**", Some(1));
        check(&yes_no, "The answer is: no", Some(1));
        check(&yes_no, "yes and no", None);
        check(&yes_no, "nothing", None);
        check(&yes_no, "", None);
        let food = ["dog", "hot dog", "a hot dog bun", "2"];
        check(&food, "a Hot-Dog", Some(1));
        check(&food, "a hot dog bun, I think", Some(2));
        check(&food, "dog or bun", Some(0));
        check(&food, "2 dogs", Some(3));
        check(&["same", "Same!"], "same", Some(0));
        check(&["same", "Same!"], "SAME", None);
        check(&["same", "same"], "same", None);
        check(&["yes", "yes."], " yes.\n", Some(1));
        check(&["yes", "yes."], "yes", Some(0));
        check(&["Yes", "yes"], "yes", Some(1));
        check(&["C", "C++", "C#"], "C++", Some(1));
        check(&["", "x"], "y", None);
        for empty in ["", " \n", "!"] {
            check(&["", "x"], empty, None);
            check(&["...", "x"], empty, None);
        }
        check(&["...", "x"], "...", Some(0));
    }
}
