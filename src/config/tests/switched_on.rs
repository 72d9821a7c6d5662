//! The shipped config.toml with its commented keys enabled.

/// A commented key or table of the example: `# key = value` or `# [[table]]`.
fn commented(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ")?;
    let key = line.split_once(" = ").is_some_and(|(key, _)| is_key(key));
    (key || line.starts_with('[')).then_some(line)
}

fn is_key(text: &str) -> bool {
    let key = text.trim();
    !key.is_empty()
        && key
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}

/// The example with every commented key enabled, and then once more
/// for each alternative, in place of the line above it.
pub(crate) fn switched_on(example: &str) -> Vec<String> {
    let lines: Vec<&str> = example.lines().collect();
    let switch = |line: &&str| commented(line).unwrap_or(line).to_owned();
    let all: Vec<String> = lines.iter().map(switch).collect();
    let mut texts = vec![all.join("\n")];
    for (index, line) in lines.iter().enumerate() {
        let Some(alternative) = line.strip_prefix("# or: ") else {
            continue;
        };
        let mut other = all.clone();
        let above = (0..index)
            .rev()
            .find(|&above| !lines[above].starts_with("# or: "));
        other[above.unwrap()] = String::new();
        other[index] = alternative.to_owned();
        texts.push(other.join("\n"));
    }
    texts
}
