//! Calls of the client library: bounded in time, with errors that say what to do, and retried with patience.
//!
//! The library's futures are huge, so each is boxed, once, in [`call`]. Its errors redact what the broker said and keep a
//! code; [`explained`] turns that into one of our kinds. [`Patience`] always pauses between tries, since the library fails at
//! once while it leaves an address alone (see `connection`). It ends soon, but for sends: then the engine tries again, as
//! it does in all trouble, and says so.

use std::fmt::Display;
use std::time::Duration;

use rocketmq_client_rust::{ClientError, ClientResult, MQClientException};

use crate::error::{Error, Kind, Result};

/// What an ordinary answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// The broker's code for a consumer group that does not exist.
pub(super) const NO_GROUP: i32 = 26;

/// What to do when the broker does not let in who asks, or not do this.
const DENIED: &str = "access denied; check 'access-key' and 'secret-key', and what that user may do";

/// From here on codes are the library's own, not a broker's.
const LIBRARY_CODES: i32 = 10_000;

/// Pauses between tries of one call, in seconds.
const PAUSES: &[u64] = &[1, 1, 3, 5];

/// The same of a send: a minute together, in which a broker can restart. What is sent at least once is there twice if
/// the epoch is run again.
const SENDING: &[u64] = &[1, 1, 3, 5, 5, 5, 10, 10, 10, 10];

/// So many pauses are taken with the same client.
const SAME_CLIENT: usize = 3;

/// Awaits a call of the library for at most `limit`; `what` says what was tried and where, as in "reading topic x".
pub(super) async fn call<T>(
    what: impl Display,
    limit: Duration,
    future: impl Future<Output = ClientResult<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, Box::pin(future)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(explained(what, error)),
        Err(_) => Err(Error::transient(format!(
            "{what}: no answer within {} s; check that name server and broker can be reached",
            limit.as_secs()
        ))),
    }
}

/// The broker's code for what is wrong, which the library keeps in one place for some calls and in another for others.
pub(super) fn code(error: &ClientError) -> Option<i32> {
    let exception = || error.source_ref::<MQClientException>().map(MQClientException::response_code);
    error.broker_response_code().or_else(|| exception().filter(|code| (1..LIBRARY_CODES).contains(code)))
}

/// The library's error as one of ours.
pub(super) fn explained(what: impl Display, error: ClientError) -> Error {
    let code = code(&error);
    let (kind, advice) = match (code, error.descriptor().code().as_str()) {
        (Some(16), _) | (None, "auth.permission.denied" | "auth.credentials.invalid" | "auth.user.not_found") => {
            (Kind::Refused, DENIED)
        }
        (Some(1), _) if is_denied_by_acl(&error) => (Kind::Refused, DENIED),
        (Some(1), _) => {
            let advice = "it failed, and the broker's log says why; one that checks keys by ACL 1.0 answers so, too, if \
                          'access-key' or 'secret-key' is wrong or missing";
            (Kind::Transient, advice)
        }
        (Some(17), _) | (None, "broker.topic.not_found") => {
            (Kind::Usage, "the broker does not have the topic; create it, or correct 'topic'")
        }
        (Some(13), _) | (None, "broker.message.invalid" | "broker.message.too_large") => {
            let advice = "the broker refuses a message, most likely for its size (look at its maxMessageSize), or for \
                          a delivery-time that is too far off (timerMaxDelaySec)";
            (Kind::Data, advice)
        }
        (Some(26), _) | (None, "broker.subscription_group.not_found") => {
            (Kind::Refused, "the consumer group does not exist, and the broker creates none by itself")
        }
        (Some(22), _) | (None, "broker.query.not_found") => (Kind::Transient, "the broker found nothing"),
        (Some(2 | 14), _) => (Kind::Transient, "the broker is too busy, or cannot serve now"),
        (None, "transport.dns.failed") => (Kind::Transient, "the host name is unknown; check 'name-server'"),
        (None, "route.topic.not_found" | "broker.lookup.not_found" | "rpc.broker_address.not_found") => {
            (Kind::Transient, "no broker that has the topic is known to the name server now")
        }
        (None, code) if code.starts_with("transport.") || code.ends_with("timed_out") => {
            (Kind::Transient, "name server or broker cannot be reached, or do not answer")
        }
        (None, "core.argument.invalid") => (Kind::Transient, "the client could not carry it out"),
        _ => (Kind::Transient, "it failed"),
    };
    let code = code.map(|code| format!(" (code {code})")).unwrap_or_default();
    Error::new(kind, format!("{what}: {advice}{code}")).caused_by(error)
}

/// Whether a broker with ACL 1.0, which has no code for it, does not let in who asks. It is found out where the library
/// keeps the text, which is of changes at the broker. A topic may be called oracle, so that "acl" alone says nothing.
fn is_denied_by_acl(error: &ClientError) -> bool {
    let text = error.source_ref::<MQClientException>().and_then(MQClientException::error_message);
    let text = text.unwrap_or_default().to_lowercase();
    ["aclexception", "signature failed", "signature-failed"].iter().any(|sign| text.contains(sign))
}

/// How often a call that failed is tried again, and the pauses between.
#[derive(Debug)]
pub(super) struct Patience {
    pauses: &'static [u64],
    taken: usize,
}

impl Patience {
    /// For one call, or for a run of calls of which each success starts anew.
    pub(super) fn new() -> Self {
        Self { pauses: PAUSES, taken: 0 }
    }

    /// For a send.
    pub(super) fn sending() -> Self {
        Self { pauses: SENDING, taken: 0 }
    }

    /// Whether it is time to try another client.
    pub(super) fn is_worn(&self) -> bool {
        self.taken > SAME_CLIENT
    }

    /// Pauses after a transient error, unless patience is at its end; other errors come straight back.
    pub(super) async fn pause(&mut self, error: Error) -> Result<()> {
        let next = if error.kind() == Kind::Transient { self.pauses.get(self.taken) } else { None };
        let Some(&seconds) = next else { return Err(error) };
        self.taken += 1;
        tracing::warn!(error = %error.chain(), "RocketMQ: trying again in {seconds} s");
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_with_another_client() {
        for pauses in [PAUSES, SENDING] {
            assert!(pauses.len() > SAME_CLIENT);
            assert!(pauses.iter().all(|seconds| *seconds >= 1));
        }
    }

    #[test]
    fn the_patience_of_a_send_outlasts_the_circuit_breaker() {
        assert!(SENDING.iter().sum::<u64>() >= 40);
    }

    #[tokio::test]
    async fn only_transient_errors_are_waited_for() {
        let error = Patience::new().pause(Error::data_loss("gone")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss);
    }

    #[test]
    fn codes_become_kinds() {
        let kind = |code| explained("x", ClientError::broker_operation_failed("PULL", code, "")).kind();
        assert_eq!([kind(16), kind(17), kind(13), kind(26)], [Kind::Refused, Kind::Usage, Kind::Data, Kind::Refused]);
        assert_eq!(kind(1), Kind::Transient);
        let hidden = |code| explained("x", MQClientException::new_with_code(code, "").into());
        assert_eq!([hidden(16).kind(), hidden(10_005).kind()], [Kind::Refused, Kind::Transient]);
        assert!(hidden(10_005).to_string().ends_with("the client could not carry it out"));
        let told = |text: &str| explained("x", MQClientException::new_with_code(1, text).into());
        let by_acl = told("org.apache.rocketmq.acl.common.AclException: Check signature failed for accessKey=me");
        assert_eq!([by_acl.kind(), told("topic oracle: no such file").kind()], [Kind::Refused, Kind::Transient]);
        assert!(by_acl.to_string().contains("check 'access-key' and 'secret-key'"), "{by_acl}");
        let untold = explained("x", ClientError::broker_operation_failed("PULL", 1, "AclException")).to_string();
        assert!(untold.contains("'secret-key' is wrong or missing (code 1)"), "{untold}");
        let error = explained("table t: topic x", ClientError::broker_operation_failed("PULL", 16, ""));
        assert!(error.to_string().starts_with("table t: topic x: access denied;"), "{error}");
    }
}
