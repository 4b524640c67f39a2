//! What a site says about the use of a page or image in training: robots directives and the TDM
//! reservation protocol, in headers or in the page itself.

use crate::http::Head;
use crate::plan::OptOutPlan;
use crate::reject::DropReason;

/// What the headers say against a use, if anything.
pub fn in_head(head: &Head, rules: &OptOutPlan) -> Option<DropReason> {
    let directives = head.all("X-Robots-Tag").find_map(|value| forbidding(value, rules));
    let directives = directives.map(|word| DropReason::detail("x_robots_tag", word));
    directives.or_else(|| in_reservation(head.header("TDM-Reservation"), rules))
}

/// What the `<meta>` elements of a page say against its use, if anything.
pub fn in_meta(
    robots: &[String],
    reservation: Option<&str>,
    rules: &OptOutPlan,
) -> Option<DropReason> {
    let directives = robots.iter().find_map(|value| forbidding(value, rules));
    let directives = directives.map(|word| DropReason::detail("meta_robots", word));
    directives.or_else(|| in_reservation(reservation, rules))
}

/// The first directive of a list that forbids, also where it names one crawler (`bot: noai`).
fn forbidding(value: &str, rules: &OptOutPlan) -> Option<String> {
    let lower = value.to_lowercase();
    let mut words = lower.split([',', ':', ';', ' ']).map(str::trim);
    words.find(|word| rules.directives.iter().any(|no| no == word)).map(str::to_owned)
}

fn in_reservation(value: Option<&str>, rules: &OptOutPlan) -> Option<DropReason> {
    let is_reserved = rules.tdm_reservation && value.is_some_and(|value| value.trim() == "1");
    is_reserved.then(|| DropReason::because("tdm_reservation"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(name: &str, value: &str) -> Option<&'static str> {
        let headers = vec![("A".to_owned(), "b".to_owned()), (name.to_owned(), value.to_owned())];
        in_head(&Head { status: 200, headers }, &OptOutPlan::default()).map(|drop| drop.reason)
    }

    #[test]
    fn a_no_is_heard_in_every_form() {
        assert_eq!(reason("X-Robots-Tag", "noai"), Some("x_robots_tag"));
        assert_eq!(reason("x-robots-tag", "otherbot: noindex, NOIMAGEAI"), Some("x_robots_tag"));
        assert_eq!(reason("tdm-reservation", " 1 "), Some("tdm_reservation"));
        assert_eq!(reason("X-Robots-Tag", "noindex, noarchive"), None);
        assert_eq!(reason("tdm-reservation", "0"), None);
        let rules = OptOutPlan::default();
        let meta = in_meta(&["all".into(), "noai".into()], None, &rules).unwrap();
        assert_eq!((meta.reason, meta.detail.as_deref()), ("meta_robots", Some("noai")));
        assert_eq!(in_meta(&[], Some("1"), &rules).unwrap().reason, "tdm_reservation");
    }

    #[test]
    fn a_plan_may_ignore_them() {
        let rules =
            OptOutPlan { directives: vec![], tdm_reservation: false, ..OptOutPlan::default() };
        assert_eq!(in_meta(&["noai".into()], Some("1"), &rules), None);
    }
}
