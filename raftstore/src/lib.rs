//! Multi-raft as a state machine: inputs in, effects out.
