//! Slurm's compressed lists of host names, for example `n[1-2,7],gpu-[001-004],r[1-2]n[1-3]`.
//!
//! The program parses them itself because containers often have no `scontrol`.

use anyhow::{Context, Result, bail, ensure};

/// Largest number of hosts in a list. Slurm has the same limit.
const MAX_HOSTS: usize = 65_536;

/// Expands a list into its host names, in the order of the list.
///
/// # Errors
/// Names the part of the list that is not a host name or a range.
pub(crate) fn hosts(list: &str) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    for part in split(list)? {
        let names = expand(part).with_context(|| format!("\"{part}\" is not a host name or a range of host names"))?;
        hosts.extend(names);
        ensure!(hosts.len() <= MAX_HOSTS, "the list contains more than {MAX_HOSTS} hosts");
    }
    Ok(hosts)
}

/// Splits a list at the commas outside of brackets.
fn split(list: &str) -> Result<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, byte) in list.bytes().enumerate() {
        match (byte, inside) {
            (b'[', false) => inside = true,
            (b']', true) => inside = false,
            (b'[' | b']', _) => bail!("\"{list}\" has unbalanced brackets"),
            (b',', false) => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    ensure!(!inside, "\"{list}\" has unbalanced brackets");
    parts.push(&list[start..]);
    Ok(parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect())
}

/// Expands one part of a list: text and bracketed ranges. The last range varies fastest.
fn expand(part: &str) -> Result<Vec<String>> {
    let mut names = vec![String::new()];
    let mut rest = part;
    while let Some((text, tail)) = rest.split_once('[') {
        let (ranges, after) = tail.split_once(']').context("a bracket is missing")?;
        let numbers = numbers(ranges)?;
        ensure!(names.len() * numbers.len() <= MAX_HOSTS, "it contains more than {MAX_HOSTS} hosts");
        names =
            names.iter().flat_map(|name| numbers.iter().map(move |number| format!("{name}{text}{number}"))).collect();
        rest = after;
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    Ok(names)
}

/// Expands ranges such as `1-2,007-010`. The numbers of a range are padded to the width of its
/// first number.
fn numbers(ranges: &str) -> Result<Vec<String>> {
    let mut numbers = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>()
                .ok()
                .filter(|_| digits)
                .with_context(|| format!("\"{range}\" is not a range of numbers"))
        };
        let (from, to, width) = (number(first)?, number(last)?, first.len());
        ensure!(from <= to, "the range {range} is descending");
        ensure!(to - from < (MAX_HOSTS - numbers.len()) as u64, "it contains more than {MAX_HOSTS} hosts");
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_expanded_in_their_order() {
        for (list, expected) in [
            ("n1", "n1"),
            ("n[1-2,7],gpu-[001-004]", "n1 n2 n7 gpu-001 gpu-002 gpu-003 gpu-004"),
            ("r[1-2]n[1-3]", "r1n1 r1n2 r1n3 r2n1 r2n2 r2n3"),
            ("n[098-101],n[9-11]", "n098 n099 n100 n101 n9 n10 n11"),
            ("n[3,1],login.example.org", "n3 n1 login.example.org"),
            ("a[1-2]-ib", "a1-ib a2-ib"),
            ("[1-2]", "1 2"),
            ("", ""),
        ] {
            assert_eq!(hosts(list).unwrap().join(" "), expected, "{list}");
        }
    }

    #[test]
    fn invalid_lists_are_refused() {
        for (list, expected) in [
            ("n[1-2", "\"n[1-2\" has unbalanced brackets"),
            ("n1]", "unbalanced brackets"),
            ("n[[1]]", "unbalanced brackets"),
            ("n[]", "\"\" is not a range of numbers"),
            ("x,n[2-1]", "\"n[2-1]\" is not a host name or a range of host names: the range 2-1 is descending"),
            ("n[1-x]", "\"1-x\" is not a range"),
            ("n[+1]", "\"+1\" is not a range"),
            ("n[1-99999999999]", "contains more than 65536 hosts"),
            ("n[0-18446744073709551615]", "contains more than 65536 hosts"),
            ("n[1-99999999999999999999]", "is not a range"),
            ("n[1-300]m[1-300]", "contains more than 65536 hosts"),
        ] {
            let error = format!("{:#}", hosts(list).unwrap_err());
            assert!(error.contains(expected), "{list}: {error}");
        }
    }

    /// Generates a range and the numbers it stands for.
    fn range() -> impl Strategy<Value = (String, Vec<String>)> {
        (0..2_000u64, 0..12u64, 0..6usize).prop_map(|(first, more, width)| {
            let padded = |number: u64| format!("{number:0width$}");
            let names = (first..=first + more).map(padded).collect();
            // The last number is padded as Slurm does it, or not padded.
            let written = match more {
                0 => padded(first),
                _ if more % 2 == 0 => format!("{}-{}", padded(first), padded(first + more)),
                _ => format!("{}-{}", padded(first), first + more),
            };
            (written, names)
        })
    }

    /// Generates a prefix with up to two brackets of one to three ranges, and the names it stands
    /// for.
    fn part() -> impl Strategy<Value = (String, Vec<String>)> {
        let bracket = ("[a-z]{1,5}-?", prop::collection::vec(range(), 1..4));
        let single = "[a-z]{1,8}[0-9]{0,3}".prop_map(|name| (name.clone(), vec![name]));
        let ranged = prop::collection::vec(bracket, 1..3).prop_map(|brackets| {
            let (mut written, mut names) = (String::new(), vec![String::new()]);
            for (text, ranges) in brackets {
                let inside: Vec<&str> = ranges.iter().map(|(range, _)| range.as_str()).collect();
                written += &format!("{text}[{}]", inside.join(","));
                let numbers: Vec<&String> = ranges.iter().flat_map(|(_, numbers)| numbers).collect();
                let mut longer = Vec::new();
                for name in &names {
                    longer.extend(numbers.iter().map(|number| format!("{name}{text}{number}")));
                }
                names = longer;
            }
            (written, names)
        });
        prop_oneof![1 => single, 3 => ranged]
    }

    fn list() -> impl Strategy<Value = (String, Vec<String>)> {
        prop::collection::vec(part(), 1..4).prop_map(|parts| {
            let written: Vec<String> = parts.iter().map(|(written, _)| written.clone()).collect();
            (written.join(","), parts.into_iter().flat_map(|(_, names)| names).collect())
        })
    }

    proptest! {
        #[test]
        fn generated_lists_expand_to_their_names((written, names) in list()) {
            prop_assert_eq!(hosts(&written).unwrap(), names);
        }

        #[test]
        fn no_text_causes_a_panic(text in "[a-c0-9,\\[\\]\\- ]{0,30}") {
            let _ = hosts(&text);
        }
    }

    /// Compares with `scontrol show hostnames`, which needs a configuration file but no daemon.
    #[test]
    fn scontrol_expands_lists_to_the_same_names() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;

        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("slurm.conf");
        std::fs::write(&config, "ClusterName=test\nSlurmctldHost=localhost\n").unwrap();
        let scontrol = |list: &str| {
            let mut command = std::process::Command::new("scontrol");
            command.env("SLURM_CONF", &config).args(["show", "hostnames", list]).output()
        };
        if let Err(error) = scontrol("n1") {
            println!("skipped: cannot run scontrol ({error})");
            return;
        }
        let mut runner = TestRunner::deterministic();
        let mut lists: Vec<String> =
            ["n[1-2,7],gpu-[001-004]", "r[1-2]n[1-3]", "n[098-101]"].map(str::to_owned).to_vec();
        lists.extend((0..60).map(|_| list().new_tree(&mut runner).unwrap().current().0));
        for list in lists {
            let output = scontrol(&list).unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            assert_eq!(hosts(&list).unwrap(), printed.lines().collect::<Vec<_>>(), "{list}");
        }
    }
}
