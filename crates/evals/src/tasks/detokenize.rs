//! Undoing the tokenization of WikiText. The rules and their order are those of
//! `wikitext_detokenizer` in lm-evaluation-harness, including its mistakes.

use crate::scoring::requests::is_white_space;

/// Removes the spaces that WikiText's tokenization inserted into a page.
pub(crate) fn detokenize(page: &str) -> String {
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

/// Does what `re.sub(r"/' [0-9]/", r"/'[0-9]/", text)` does. The harness delimits this pattern with
/// slashes, as other languages do. In Python they are part of the pattern, so it matches only
/// between literal slashes and inserts the text of the pattern.
fn digits_between_slashes(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("/' ") {
        let is_match = matches!(rest.as_bytes()[at + 3..], [b'0'..=b'9', b'/', ..]);
        let (replacement, next) = if is_match { ("/'[0-9]/", at + 5) } else { ("/", at + 1) };
        out.push_str(&rest[..at]);
        out.push_str(replacement);
        rest = &rest[next..];
    }
    out + rest
}

/// Removes the white space just inside each pair of marks, from an opening mark to the next closing
/// mark.
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

    /// The expected texts are those of lm_eval 0.4.9:
    /// `lm_eval.tasks.wikitext.preprocess_wikitext.wikitext_detokenizer({"page": ...})`.
    #[test]
    fn rules_equal_those_of_the_harness() {
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
            assert_eq!(detokenize(page), want, "{page}");
        }
    }
}
