//! builder

mod componentize;

pub use componentize::{ComponentizeError, componentize};
