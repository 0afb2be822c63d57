//! What becomes of an outcome at a proxy: one table for all protocols. `docs/proxies.md` shows it; `rows` below tests it.
//!
//! There is one way to [`Gate::Open`]: a decision to allow. Everything else, errors of every kind included, is a
//! [`Down`] with a word for it, a status for HTTP and one for gRPC. A status that a proxy could take for "allow" is never given.

use bytes::Bytes;

use crate::artifact::Digest;
use crate::client::ClientError;
use crate::decision::{Decision, DecisionId, Obligations, Outcome, Refusal, Timing};

/// A decision as proxies are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a verdict that is not told is not enforced"]
pub(crate) struct Verdict {
    pub(crate) gate: Gate,
    /// For an open gate what goes with the request; for a denial what goes with the answer; else empty.
    pub(crate) obligations: Obligations,
    pub(crate) id: Option<DecisionId>,
    pub(crate) digest: Option<Digest>,
    pub(crate) timing: Timing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    Down(Down),
}

/// Why the gate stays down, in the words of each protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Down {
    pub(crate) code: Code,
    /// HTTP status, 300 to 599.
    pub(crate) status: u16,
    /// For the proxy's log. Not for whoever asked the proxy: it may say what the policy thinks of them.
    pub(crate) reason: String,
    /// When another attempt could end otherwise, if that is known; milliseconds.
    pub(crate) retry_after_ms: Option<u32>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident => $word:literal, $status:literal, $grpc:literal;)+) => {
        /// The kinds of a closed gate. The word is for variables, metadata and metrics; the statuses are HTTP's and gRPC's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[$doc])* $code),+ }

        impl Code {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$code),+];

            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$code => $word),+ }
            }

            /// HTTP status where the policy says none.
            pub(crate) const fn status(self) -> u16 {
                match self { $(Self::$code => $status),+ }
            }

            /// google.rpc.Code.
            pub(crate) const fn grpc(self) -> i32 {
                match self { $(Self::$code => $grpc),+ }
            }
        }
    };
}
codes! {
    /// The policy said no.
    Denied => "denied", 403, 7;
    Deadline => "deadline", 504, 4;
    Quota => "quota", 429, 8;
    Trap => "trap", 500, 13;
    InvalidOutput => "invalid_output", 500, 13;
    PolicyFailed => "policy_failed", 500, 13;
    UnknownPolicy => "unknown_policy", 500, 5;
    /// The gateway may not ask for that tenant, or nothing binds the request to one.
    NotPermitted => "not_permitted", 403, 7;
    Overloaded => "overloaded", 503, 14;
    Unavailable => "unavailable", 503, 14;
    BadRequest => "bad_request", 400, 3;
    TooLarge => "too_large", 413, 8;
    Cancelled => "cancelled", 503, 1;
    Revoked => "revoked", 503, 14;
}

impl Down {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, status: code.status(), reason: reason.into(), retry_after_ms: None }
    }

    fn of(refusal: &Refusal) -> Self {
        let code = match refusal {
            Refusal::Deadline(_) => Code::Deadline,
            Refusal::Quota { .. } => Code::Quota,
            Refusal::Trap(_) => Code::Trap,
            Refusal::InvalidOutput(_) => Code::InvalidOutput,
            Refusal::PolicyFailed { .. } => Code::PolicyFailed,
            Refusal::UnknownPolicy => Code::UnknownPolicy,
            Refusal::UnknownTenant | Refusal::NotPermitted => Code::NotPermitted,
            Refusal::Overloaded => Code::Overloaded,
            Refusal::Unavailable => Code::Unavailable,
            Refusal::BadRequest(_) => Code::BadRequest,
            Refusal::Cancelled => Code::Cancelled,
            Refusal::Revoked => Code::Revoked,
        };
        let retry_after_ms = match refusal {
            // The largest number means that waiting does not help.
            Refusal::Quota { retry_after_ms, .. } => Some(*retry_after_ms).filter(|ms| *ms != u32::MAX),
            _ => None,
        };
        Self { retry_after_ms, ..Self::new(code, refusal.to_string()) }
    }
}

impl Verdict {
    /// One that no policy had a part in.
    pub(crate) fn down(down: Down) -> Self {
        Self {
            gate: Gate::Down(down),
            obligations: Obligations::default(),
            id: None,
            digest: None,
            timing: Timing::default(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.gate == Gate::Open
    }

    /// What whoever asked the proxy is shown of a closed gate: the policy's own words, or one for it.
    pub(crate) fn body(&self) -> Bytes {
        match (&self.obligations.body, &self.gate) {
            (Some(body), _) => body.clone(),
            (None, Gate::Open) => Bytes::new(),
            (None, Gate::Down(down)) => Bytes::from(format!("{}\n", down.code.word())),
        }
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        let Decision { outcome, mut obligations, cache: _, digest, timing, id } = decision;
        let gate = match outcome {
            Outcome::Allow => Gate::Open,
            Outcome::Deny { reason } => {
                let mut down = Down::new(Code::Denied, reason);
                // Where the status is the decision, one of success would open the gate.
                if let Some(status) = obligations.status.filter(|status| (300..=599).contains(status)) {
                    down.status = status;
                }
                Gate::Down(down)
            }
            Outcome::Refused(refusal) => {
                obligations = Obligations::default();
                Gate::Down(Down::of(&refusal))
            }
        };
        Self { gate, obligations, id, digest, timing }
    }
}

impl From<&ClientError> for Down {
    fn from(error: &ClientError) -> Self {
        let code = match error {
            ClientError::Deadline => Code::Deadline,
            ClientError::TooLong => Code::TooLarge,
            ClientError::BatchSize(_) => Code::BadRequest,
            ClientError::Connect { .. }
            | ClientError::Farewell(_)
            | ClientError::Closed(_)
            | ClientError::Protocol(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Result<Decision, ClientError>> for Verdict {
    fn from(result: Result<Decision, ClientError>) -> Self {
        match result {
            Ok(decision) => decision.into(),
            Err(error) => Self::down(Down::from(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Quota, Stage, TrapKind};

    fn with(outcome: Outcome) -> Decision {
        Decision { outcome, ..Decision::refused(Refusal::Unavailable) }
    }

    fn down(verdict: &Verdict) -> &Down {
        match &verdict.gate {
            Gate::Down(down) => down,
            Gate::Open => panic!("the gate is open"),
        }
    }

    #[test]
    fn rows() {
        let rows = [
            (Refusal::Deadline(Stage::Run), "deadline", 504, 4),
            (Refusal::Quota { which: Quota::Cpu, retry_after_ms: 1500 }, "quota", 429, 8),
            (Refusal::Trap(TrapKind::Stack), "trap", 500, 13),
            (Refusal::InvalidOutput("x".into()), "invalid_output", 500, 13),
            (Refusal::PolicyFailed { reason: "a".into(), detail: "b".into() }, "policy_failed", 500, 13),
            (Refusal::UnknownPolicy, "unknown_policy", 500, 5),
            (Refusal::UnknownTenant, "not_permitted", 403, 7),
            (Refusal::NotPermitted, "not_permitted", 403, 7),
            (Refusal::Overloaded, "overloaded", 503, 14),
            (Refusal::Unavailable, "unavailable", 503, 14),
            (Refusal::BadRequest("x".into()), "bad_request", 400, 3),
            (Refusal::Cancelled, "cancelled", 503, 1),
            (Refusal::Revoked, "revoked", 503, 14),
        ];
        for (refusal, word, status, grpc) in rows {
            let verdict = Verdict::from(with(Outcome::Refused(refusal.clone())));
            let down = down(&verdict);
            assert_eq!(
                (down.code.word(), down.status, down.code.grpc()),
                (word, status, grpc),
                "{refusal:?}"
            );
        }
        assert!(Verdict::from(with(Outcome::Allow)).is_open());
    }

    #[test]
    fn a_denial_has_the_policys_status_but_never_one_of_success() {
        for (asked, given) in [
            (None, 403),
            (Some(302), 302),
            (Some(451), 451),
            (Some(200), 403),
            (Some(204), 403),
            (Some(101), 403),
        ] {
            let mut decision = with(Outcome::Deny { reason: "no".into() });
            decision.obligations.status = asked;
            assert_eq!(down(&Verdict::from(decision)).status, given, "{asked:?}");
        }
    }

    #[test]
    fn no_code_is_a_success() {
        for code in Code::ALL {
            assert!((400..=599).contains(&code.status()) && code.grpc() != 0, "{code:?}");
        }
    }

    /// The table that operators go by, row by row: every code once, with its statuses, and "allow".
    #[test]
    fn the_documents_table_is_this_one() {
        let text = include_str!("../../docs/proxies.md");
        let (_, section) = text.split_once("## What becomes of an outcome").unwrap();
        let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
        let rows: Vec<Vec<&str>> = rows
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        let told: Vec<_> = rows.iter().map(|row| (row[2], row[3].to_owned(), row[4].to_owned())).collect();
        let mut codes = vec![("allow", "200".to_owned(), "0".to_owned())];
        codes.extend(
            Code::ALL.iter().map(|code| (code.word(), code.status().to_string(), code.grpc().to_string())),
        );
        assert_eq!(told, codes);
    }

    #[test]
    fn errors_of_the_way_there_keep_the_gate_down() {
        for (error, word) in [
            (ClientError::Deadline, "deadline"),
            (ClientError::TooLong, "too_large"),
            (ClientError::Closed(crate::client::Ending::Peer), "unavailable"),
        ] {
            assert_eq!(down(&Verdict::from(Err(error))).code.word(), word);
        }
    }

    #[test]
    fn a_refusal_has_no_obligations_and_says_when_to_come_again() {
        let mut decision =
            with(Outcome::Refused(Refusal::Quota { which: Quota::Requests, retry_after_ms: 40 }));
        decision.obligations.status = Some(200);
        decision.obligations.body = Some(Bytes::from_static(b"come in"));
        let verdict = Verdict::from(decision);
        assert_eq!((down(&verdict).status, down(&verdict).retry_after_ms), (429, Some(40)));
        assert_eq!(verdict.body(), "quota\n");
        let never = with(Outcome::Refused(Refusal::Quota { which: Quota::Queue, retry_after_ms: u32::MAX }));
        assert_eq!(down(&Verdict::from(never)).retry_after_ms, None);
    }
}
