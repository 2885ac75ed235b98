//! WikiText's text as people write it: lm-evaluation-harness's `wikitext_detokenizer`, rule by rule and
//! in its order, mistakes included.

use crate::scoring::requests::is_white_space;

/// A page without the blanks that WikiText's tokenisation put in.
pub(crate) fn detokenise(page: &str) -> String {
    // Contractions.
    let mut text = digits_between_slashes(&page.replace("s '", "s'"));
    // Number separators, punctuation.
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    // Brackets and quotation marks.
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')] {
        text = tighten(&text, open, close);
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// `re.sub(r"/' [0-9]/", r"/'[0-9]/", text)`: written as other languages delimit a pattern, it
/// meets slashes alone, and puts the pattern's text where they are.
fn digits_between_slashes(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("/' ") {
        let is_met = matches!(rest.as_bytes()[at + 3..], [b'0'..=b'9', b'/', ..]);
        let (instead, next) = if is_met { ("/'[0-9]/", at + 5) } else { ("/", at + 1) };
        out.push_str(&rest[..at]);
        out.push_str(instead);
        rest = &rest[next..];
    }
    out + rest
}

/// Without white space inside each pair of marks: from one that opens to the next that closes.
fn tighten(text: &str, open: char, close: char) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(open) {
        let Some((inside, behind)) = after.split_once(close) else { break };
        out.push_str(before);
        out.push(open);
        out.push_str(inside.trim_matches(is_white_space));
        out.push(close);
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `lm_eval.tasks.wikitext.preprocess_wikitext.wikitext_detokenizer({"page": ...})` of 0.4.9 gives.
    #[test]
    fn each_rule_is_the_harness_s() {
        for (page, want) in [
            (" = = Career = = \n", " == Career ==\n"),
            (
                " = Du Fu = \n \n He ( 712 \u{2013} 770 ) was \" Teddy 's Story \" , the boys ' .\n",
                " = Du Fu =\n\nHe (712 \u{2013} 770) was \"Teddy's Story\", the boys' .\n",
            ),
            ("a s ' b /' 5/ /' 1/' 2/ /' x/ c", "a s'b /'[0-9]/ /'[0-9]/' 2/ /' x/ c"),
            ("1 @,@ 000 @.@ 5 @-@ x : y ; z . ! q ! r ? s , t", "1,000.5-x: y; z.! q! r? s, t"),
            ("( a ( b ) c ) [ d ] { e } ( open [ shut ) ]", "(a ( b) c ) [d] {e} (open [shut)]"),
            ("\" one \" two \" three", "\"one\" two \" three"),
            ("' one ' two 's ' three", "'one' two's' three"),
            ("= = = = deep = = = = 90 \u{b0} N N \n x", "==== deep ==== 90\u{b0}N N\nx"),
            ("()( )(\n a\u{a0})\u{1f}(\u{1f})", "()()(a)\u{1f}()"),
        ] {
            assert_eq!(detokenise(page), want, "{page}");
        }
    }
}
