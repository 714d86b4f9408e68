//! What looks at pgleash from outside: [`report`] reads its event log, [`top`] shows a running one in the terminal,
//! [`drill`] plays the incident on a real server.

mod admin_client;
pub mod drill;
pub mod report;
pub mod top;
