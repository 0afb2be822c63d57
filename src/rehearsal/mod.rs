//! A policy tried outside of the service: cases with the answers that must come, one question at a time, measurements.
//!
//! [`Subject::open`] takes a bundle, a component or a folder, and loads it into the engine that a worker has, under the
//! limits that a worker would hold it to; [`Subject::ask`] asks it as a worker does. [`Cases`] are requests and answers,
//! [`Answer::differences`] says where an answer is another one, [`perform`] does both for a whole file. [`Record`] is
//! one evaluation written down, to be played again.
//!
//! What runs was not signed by anybody and is vouched for by nobody: nothing that is made here can be loaded by a worker.

mod answer;
mod case;
mod coverage;
mod facts;
mod flame;
mod perform;
mod question;
mod record;
mod stage;
mod subject;
mod text;

pub use answer::{Answer, Cache, Difference, Ending, Failure, Headers, Scope, Trap};
pub use case::{CASES_MAX, Case, Cases, CasesError, Clock, Seed, TOKENS};
pub use coverage::{Coverage, Grain, Part};
pub use facts::{Facts, FactsError, facts, facts_read};
pub use flame::flame_graph;
pub use perform::{Performed, PrepareError, perform, prepared};
pub use question::{End, EndAddress, HeaderLines, Http, InvalidAddress, InvalidUrl, Opaque, Question, Url};
pub use record::{RECORD_MAX, Record, RecordError, Recorded, case_of};
pub use stage::{Asked, StageError, count};
pub use subject::{Counting, Granted, Service, Subject, SubjectError, begins, find, is_bundle, start_of};
pub use text::Bytes;

/// Longest question, bytes: as much as a client may send.
pub const QUESTION_MAX: usize = crate::wire::client::CLIENT_FRAME_MAX;
