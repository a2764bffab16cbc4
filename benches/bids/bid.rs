//! The bids of the standing workload: the same every time, 190 bytes as JSON, ten a millisecond.

use std::fmt::Display;

use chrono::{DateTime, Duration, Utc};

/// 2026-01-01 00:00 UTC.
const START_MS: i64 = 1_767_225_600_000;

/// One bid.
pub struct Bid {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub channel: &'static str,
    pub url: String,
    pub at: DateTime<Utc>,
}

impl Bid {
    /// The bid with this number, from 0.
    pub fn nth(n: u64) -> Self {
        let (a, b) = (scramble(n + 1), scramble(n + 0x5151));
        Self {
            auction: a % 1000,
            bidder: (a >> 20) % 100_000,
            price: 1 + b % 1_000_000,
            channel: ["Google", "Facebook", "Baidu", "Apple"][(b >> 50) as usize % 4],
            url: format!("https://www.nexmark.com/{a:016x}/{:08x}/item.htm?query=1&channel_id={}", b as u32, b % 997),
            at: DateTime::from_timestamp_millis(START_MS).unwrap() + Duration::milliseconds((n / 10) as i64),
        }
    }

    /// It as a message.
    pub fn json(&self) -> String {
        let Self { auction, bidder, price, channel, url, .. } = self;
        format!(
            "{{\"auction\":{auction},\"bidder\":{bidder},\"price\":{price},\"channel\":\"{channel}\",\
             \"url\":\"{url}\",\"dateTime\":\"{}\"}}",
            self.time()
        )
    }

    /// Its time as SQL has it.
    pub fn time(&self) -> impl Display {
        self.at.format("%Y-%m-%d %H:%M:%S%.3f")
    }
}

/// A number that looks random and follows from `n` alone.
pub fn scramble(n: u64) -> u64 {
    let n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ (n >> 33)
}
