//! Asking again and again.

use std::{fmt::Write, sync::Arc, time::Duration};

use tokio::{signal, task, time};

use crate::exit::{Done, Exit, Failure, try_print};

/// Shows a frame every `interval` until Ctrl-C, or until nobody reads any more. `whom` is asked.
///
/// # Errors
/// When a frame cannot be had.
pub fn run(
    interval: Duration,
    whom: String,
    terminal: bool,
    frame: impl Fn() -> Result<String, Failure> + Send + Sync + 'static,
) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let done = runtime.block_on(async {
        let ended = signal::ctrl_c();
        tokio::select! {
            _ = ended => {
                if terminal {
                    // Behind the ^C that the terminal shows.
                    let _ = try_print("\n");
                }
                Ok(())
            }
            done = frames(interval, &whom, terminal, Arc::new(frame)) => done,
        }
    });
    // A node that hangs must not keep the process.
    runtime.shutdown_background();
    done
}

async fn frames(
    interval: Duration,
    whom: &str,
    terminal: bool,
    frame: Arc<impl Fn() -> Result<String, Failure> + Send + Sync + 'static>,
) -> Done {
    let mut ticks = time::interval(interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        ticks.tick().await;
        let frame = frame.clone();
        let text = match task::spawn_blocking(move || frame()).await.map_err(anyhow::Error::from)? {
            Ok(text) => text,
            Err(failure) if !first && failure.exit() == Exit::Unreachable => {
                return Err(Failure::new(Exit::Unreachable, format!("{whom} has gone away")));
            }
            Err(failure) => return Err(failure),
        };
        let text = match terminal {
            true => in_place(&text, rows(), first),
            // Nothing has happened.
            false if text.is_empty() => text,
            false => text + "\n",
        };
        if try_print(&text).is_err() {
            return Ok(());
        }
        first = false;
    }
}

/// Rows of the terminal.
fn rows() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_row))
}

/// Draws over what is there: line by line, so that nothing flickers. Long lines are cut instead of wrapped; `rows` is 0
/// when nobody knows how many there are.
fn in_place(text: &str, rows: usize, first: bool) -> String {
    let mut screen = String::from(if first { "\x1b[2J\x1b[H\x1b[?7l" } else { "\x1b[H\x1b[?7l" });
    let lines: Vec<&str> = text.lines().collect();
    // The last row is where the cursor waits.
    let room = if rows == 0 { lines.len() } else { rows.saturating_sub(1) };
    let shown = if lines.len() > room { room.saturating_sub(1) } else { lines.len() };
    for line in &lines[..shown] {
        let _ = writeln!(screen, "{line}\x1b[K");
    }
    if shown < lines.len() {
        let _ = writeln!(screen, "... {} more lines\x1b[K", lines.len() - shown);
    }
    screen.push_str("\x1b[J\x1b[?7h");
    screen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_covers_the_one_before() {
        assert_eq!(in_place("a\nb", 10, false), "\x1b[H\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h");
        assert!(in_place("a", 10, true).starts_with("\x1b[2J\x1b[H"));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let shown = in_place("a\nb\nc\nd\ne", 4, false);
        assert_eq!(shown, "\x1b[H\x1b[?7la\x1b[K\nb\x1b[K\n... 3 more lines\x1b[K\n\x1b[J\x1b[?7h");
        assert!(!in_place("a\nb\nc", 4, false).contains("more"));
        assert!(!in_place("a\nb\nc\nd\ne", 0, false).contains("more"));
    }
}
