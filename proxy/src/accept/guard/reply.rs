//! The reply to a request that hyper never sees.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Violation;

/// A complete HTTP/1.1 response that ends the connection.
pub(super) fn reply(violation: &Violation, now: SystemTime) -> Vec<u8> {
    let row = violation.reason.row();
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!(
        "HTTP/1.1 {} {}\r\nserver: weft\r\nx-weft-reason: {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\ndate: {}\r\n\r\n{}\n",
        row.status.as_str(),
        row.status.canonical_reason().unwrap_or_default(),
        row.name,
        violation.detail.len() + 1,
        imf_fixdate(seconds),
        violation.detail,
    )
    .into_bytes()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn imf_fixdate(unix: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let (days, second) = (unix / 86_400, unix % 86_400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let length = 365 + u64::from(leap(year));
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let mut month = "Dec";
    for (name, length) in MONTHS {
        let length = length + u64::from(name == "Feb" && leap(year));
        if day < length {
            month = name;
            break;
        }
        day -= length;
    }
    let weekday = DAYS[(days % 7) as usize];
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT", day + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (unix, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(imf_fixdate(unix), date);
        }
    }

    #[test]
    fn the_reply_is_complete() {
        let violation = Violation::in_head(Reason::BadRequest, "no Host");
        let text = String::from_utf8(reply(&violation, UNIX_EPOCH)).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 400 Bad Request\r\nserver: weft\r\nx-weft-reason: bad_request\r\ncontent-type: text/plain\r\n\
             content-length: 8\r\nconnection: close\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nno Host\n"
        );
    }
}
