//! How long certificates are good for.
//!
//! Owns the two periods and the calendar arithmetic (proleptic Gregorian, from days since 1970).
//! The clock comes in as an argument.

use std::time::{Duration, SystemTime};

/// How long the authority and its certificates are good for, in days.
pub(super) const VALIDITY_DAYS: u64 = 3650;

/// How far clocks of a cluster may be apart, in days.
const CLOCK_SKEW_DAYS: u64 = 2;

/// A day of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Day {
    pub(super) year: i32,
    pub(super) month: u8,
    pub(super) day: u8,
}

/// First and last day of a certificate made `now`.
pub(super) fn validity(now: SystemTime) -> (Day, Day) {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let today = since_epoch.as_secs() / 86_400;
    (day_of(today.saturating_sub(CLOCK_SKEW_DAYS)), day_of(today + VALIDITY_DAYS))
}

/// Days since 1970-01-01 to a date (H. Hinnant, "chrono-compatible low-level date algorithms").
fn day_of(days: u64) -> Day {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    Day {
        year: i32::try_from(year).unwrap_or(i32::MAX),
        month: u8::try_from(month).unwrap_or(1),
        day: u8::try_from(day).unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let date = |year, month, day| Day { year, month, day };
        assert_eq!(day_of(0), date(1970, 1, 1));
        assert_eq!(day_of(11_016), date(2000, 2, 29));
        assert_eq!(day_of(19_782), date(2024, 2, 29));
        assert_eq!(day_of(20_454), date(2026, 1, 1));
    }
}
