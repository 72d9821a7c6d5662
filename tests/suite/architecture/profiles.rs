//! Knowledge about one service stays in `profiles/` and in its emulator.

use std::fs;

use proc_macro2::{TokenStream, TokenTree};

use super::source::source;

/// The words, in lower case.
const WORDS: [&str; 4] = ["webapp", "whatsapp", "turn.io", "/v1/"];

/// Values of configuration keys: as whole literals, or quoted in a message.
const VALUES: [&str; 2] = ["\"webapp\"", "\"whatsapp\""];

#[test]
fn no_code_outside_profiles_and_emulator_knows_one_service() {
    let mut found = Vec::new();
    let mut words = 0;
    for file in source() {
        if file.is_test() || ["profiles", "emulator"].contains(&file.top()) {
            continue;
        }
        let text = fs::read_to_string(&file.path).unwrap();
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        words_of(program.parse().unwrap(), &mut |text| {
            words += 1;
            let mut text = text.to_lowercase().replace("\\\"", "\"");
            for value in VALUES {
                text = text.replace(value, "");
            }
            if WORDS.iter().any(|word| text.contains(word)) {
                found.push(format!("{}: {text}", file.path.display()));
            }
        });
    }
    assert!(words > 10_000, "the scan found almost nothing");
    assert!(found.is_empty(), "{found:#?}");
}

/// Names and literals, without comments and documentation.
fn words_of(tokens: TokenStream, found: &mut impl FnMut(String)) {
    let mut after_hash = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                let first = group.stream().into_iter().next();
                let is_doc = first.is_some_and(|token| token.to_string() == "doc");
                if !(after_hash && is_doc) {
                    words_of(group.stream(), found);
                }
            }
            TokenTree::Ident(name) => found(name.to_string()),
            TokenTree::Literal(literal) => found(literal.to_string()),
            TokenTree::Punct(mark) => {
                after_hash = mark.as_char() == '#' || (after_hash && mark.as_char() == '!');
                continue;
            }
        }
        after_hash = false;
    }
}
