//! Reads what routing needs from encoded messages, without decoding them.
