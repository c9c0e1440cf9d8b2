//! Slurm's short form of lists of hosts: `gpu[03-05,9],login1` is gpu03, gpu04, gpu05, gpu9,
//! login1.
//!
//! Invariant: a list is never longer than [`HOSTS_MAX`], whatever it claims.

use super::RankFactsError;

/// Hosts of one list, at most.
pub const HOSTS_MAX: usize = 4096;

/// The hosts of `list`, in order. `what` names it in errors.
pub(super) fn expand(what: &'static str, list: &str) -> Result<Vec<String>, RankFactsError> {
    let mut hosts = Vec::new();
    for part in split(list) {
        if part.is_empty() {
            return Err(malformed(what, list));
        }
        expand_part(what, list, String::new(), part, &mut hosts)?;
    }
    Ok(hosts)
}

/// Splits at the commas that are outside of brackets.
fn split(list: &str) -> Vec<&str> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in list.char_indices() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            ',' if !inside => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts
}

/// Adds what `rest` stands for, each behind `front`; brackets may come several times.
fn expand_part(
    what: &'static str,
    list: &str,
    front: String,
    rest: &str,
    hosts: &mut Vec<String>,
) -> Result<(), RankFactsError> {
    let Some((before, behind)) = rest.split_once('[') else {
        if rest.contains(']') {
            return Err(malformed(what, list));
        }
        if hosts.len() >= HOSTS_MAX {
            return Err(RankFactsError::TooManyHosts { what });
        }
        hosts.push(front + rest);
        return Ok(());
    };
    let (ranges, after) = behind.split_once(']').ok_or_else(|| malformed(what, list))?;
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (Ok(from), Ok(to)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(malformed(what, list));
        };
        if !digits(first) || !digits(last) || to < from {
            return Err(malformed(what, list));
        }
        for number in from..=to {
            // Leading zeros count: `[08-10]` is 08, 09, 10.
            let next = format!("{front}{before}{number:0width$}", width = first.len());
            expand_part(what, list, next, after, hosts)?;
        }
    }
    Ok(())
}

fn malformed(what: &'static str, list: &str) -> RankFactsError {
    RankFactsError::Malformed {
        what,
        found: list.to_owned(),
        expected: "hosts as Slurm lists them, as in gpu[01-04],login1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> String {
        expand("LIST", list).map_or_else(|error| error.to_string(), |hosts| hosts.join(" "))
    }

    #[test]
    fn lists_are_expanded_as_slurm_writes_them() {
        let table = [
            ("gpu1", "gpu1"),
            ("a,b", "a b"),
            ("gpu[03-05,9],login1", "gpu03 gpu04 gpu05 gpu9 login1"),
            ("n[8-11]", "n8 n9 n10 n11"),
            ("n[08-11]", "n08 n09 n10 n11"),
            ("rack[0-1]n[1-2]", "rack0n1 rack0n2 rack1n1 rack1n2"),
            ("10.0.0.[7-8].x", "10.0.0.7.x 10.0.0.8.x"),
        ];
        for (list, expected) in table {
            assert_eq!(hosts(list), expected, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_bounded() {
        for list in
            ["", ",", "a,", "a[", "a]", "a[]", "a[x]", "a[3-1]", "a[1-]", "a[-1]", "a[+1-2]"]
        {
            assert!(hosts(list).contains("LIST"), "{list}: {}", hosts(list));
        }
        for list in ["a[1-4097]", "a[1-99999999999]", "a[0-99]b[0-99]"] {
            assert!(hosts(list).contains("more than 4096"), "{list}");
        }
    }
}
