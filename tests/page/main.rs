//! The page of `towpath ui` and of `towpath run`: the built program, over HTTP and in a real browser.

#![cfg(test)]

mod browser;
mod daemon;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/isolated.rs"]
mod isolated;
mod requests;
#[path = "../support/root.rs"]
mod root;
mod served;
#[path = "../support/browser.rs"]
mod tools;
#[path = "../support/wait.rs"]
mod wait;
