//! The producer as its callers see it, over a broker in memory and over the embedded one.
#![cfg(test)]

mod binary;
mod crash;
mod plan;
mod produce;
mod support;
