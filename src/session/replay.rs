//! A past epoch of a query, run again over the tables of this session: [`Replay`] says what that is.

use super::Session;
use crate::error::Result;
use crate::query::replay::{Replay, Replayed};
use crate::sql;

impl Session {
    /// The rows that the epoch gave; or, with a SELECT, its answer over those that the epoch read. What says how to connect
    /// comes from this session's tables of the same names.
    pub async fn replay(&self, replay: &Replay, select: Option<&str>) -> Result<Replayed> {
        let (connectors, environment) = (&self.connectors, self.environment());
        match select {
            None => {
                let planned = self.replanned(replay.definition().clone()).await?;
                replay.rows(&planned, connectors, &environment).await
            }
            Some(text) => {
                let query = sql::parse_query(text)?;
                let session = self.as_defined(replay.definition()).await?;
                let plan = session.plan_query(*query).await?;
                replay.ask(plan, &session.context.state(), connectors, &environment).await
            }
        }
    }
}
