//! stub
pub mod options;
