//! The causes of an error, for messages. The text of each error names only its own step, so that
//! nothing is repeated.

use std::error::Error;

/// The causes of `error`, the nearest first, without `error` itself.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// The error with its causes on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        #[source]
        source: Option<Box<Self>>,
    }

    #[test]
    fn each_step_appears_once_and_the_nearest_first() {
        let step = |text, source: Option<Step>| Step {
            text,
            source: source.map(Box::new),
        };
        let error = step("a", Some(step("b", Some(step("c", None)))));
        assert_eq!(chain(&error), "a: b: c");
        assert_eq!(causes(&error).count(), 2);
    }
}
