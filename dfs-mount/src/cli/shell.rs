//! `dfs shell`: the same commands, typed one after the other in one session.
//!
//! It owns reading lines and splitting them into words; what a command means stays with
//! the definition in `args`. Ctrl-C ends the command that runs, not the shell.

use std::io::{IsTerminal, Write};

use clap::Parser;
use dfs_common::ErrorKind;

use super::args::{Arguments, Command};
use super::content;
use super::execute;
use super::failure::{Failure, Outcome};
use super::help::INSTRUCTIONS;
use super::render;
use super::session::Session;
use super::upload::spool;

pub(crate) async fn shell(session: &Session) -> Outcome {
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        render::text("Type a command, 'instructions' for an explanation, 'quit' or 'bye' to end.\n")?;
    }
    let mut last = 0;
    while let Some(line) = next_line(terminal.then_some("dfs> ")).await? {
        let words = match split(&line) {
            Ok(words) => words,
            Err(problem) => {
                session.report(&Failure::new(ErrorKind::Invalid, problem));
                last = session.take_exit();
                continue;
            }
        };
        match words.first().map(String::as_str) {
            None => continue,
            Some("quit" | "bye" | "exit") => break,
            Some(_) => last = run(session, &words).await,
        }
    }
    // A script that is piped in ends with its last command's exit code.
    match last {
        0 => Ok(()),
        _ if terminal => Ok(()),
        code => {
            session.set_exit(code);
            Ok(())
        }
    }
}

/// Carries out one line; returns its exit code.
async fn run(session: &Session, words: &[String]) -> u8 {
    let arguments = match Arguments::try_parse_from(std::iter::once("dfs").chain(words.iter().map(String::as_str))) {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help goes to stdout, errors to stderr; neither ends the shell.
            let _ = e.print();
            return u8::from(e.use_stderr()) * 2;
        }
    };
    let done = async {
        match arguments.command {
            Command::Shell => Err(Failure::new(ErrorKind::Invalid, "this is the shell")),
            Command::Instructions => render::text(INSTRUCTIONS),
            // Standard input is where the commands come from, so the text does too.
            Command::Write(write) if write.file.as_deref().is_none_or(|file| file == "-") => {
                let text = text_until_dot().await?;
                let content = spool(text.into(), std::io::empty()).await?;
                content::store(session, &write, content).await
            }
            command => Box::pin(execute(session, &command)).await,
        }
    };
    let outcome = tokio::select! {
        outcome = done => outcome,
        _ = session.interrupted() => {
            session.abandon().await;
            Err(Failure::new(ErrorKind::Interrupted, "interrupted"))
        }
    };
    if let Err(e) = outcome {
        session.report(&e);
    }
    session.take_exit()
}

/// Lines up to one that holds a single dot, or the end of the input.
async fn text_until_dot() -> Outcome<Vec<u8>> {
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        render::text("Type the text; a line with a single dot ends it.\n")?;
    }
    let mut text = Vec::new();
    while let Some(line) = next_line(terminal.then_some("")).await? {
        if line == "." {
            break;
        }
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    Ok(text)
}

/// The next line without its end; `None` at the end of the input.
async fn next_line(prompt: Option<&'static str>) -> Outcome<Option<String>> {
    let read = tokio::task::spawn_blocking(move || {
        if let Some(prompt) = prompt {
            std::io::stdout().write_all(prompt.as_bytes())?;
            std::io::stdout().flush()?;
        }
        let mut line = String::new();
        let count = std::io::stdin().read_line(&mut line)?;
        Ok::<_, std::io::Error>((count > 0).then_some(line))
    });
    let line = read.await.expect("reading does not panic")?;
    Ok(line.map(|line| line.strip_suffix('\n').map(str::to_owned).unwrap_or(line)))
}

/// Words as a shell splits them: blanks separate, quotes and backslashes keep. `#` starts a comment.
fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().push(rest.next().ok_or("the line ends in a backslash")?),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("the quote {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_in_a_shell() {
        let words = |line| split(line).unwrap();
        assert_eq!(words("  ls  -l /a "), ["ls", "-l", "/a"]);
        assert_eq!(words(r#"write "a b" 'c"d' e\ f ''"#), ["write", "a b", "c\"d", "e f", ""]);
        assert_eq!(words(r#""a\"b" 'c\d'"#), ["a\"b", "c\\d"]);
        assert_eq!(words("ls # a comment"), ["ls"]);
        assert_eq!(words("a#b"), ["a#b"]);
        assert!(words("").is_empty());
        assert!(split("'open").is_err() && split("end\\").is_err());
    }
}
