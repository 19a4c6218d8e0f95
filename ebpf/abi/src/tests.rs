//! Tables, and a naive model.
