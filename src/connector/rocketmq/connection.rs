//! A client that is made when it is first needed, shared by all who use it, and replaced when it no longer dials.
//!
//! After five failed dials the library leaves an address alone for 30 s, however soon the broker is back. A fresh client
//! dials at once; so whoever has tried a few times in vain goes on with one.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::calls::Patience;
use crate::error::{Error, Result};

/// Makes a client, each time with a name of its own.
type Connect<C> = Box<dyn Fn() -> BoxFuture<'static, Result<C>> + Send + Sync>;

/// The client of a table.
pub(super) struct Connection<C> {
    connect: Connect<C>,
    state: Mutex<State<C>>,
}

enum State<C> {
    Unopened,
    Open(Arc<C>),
    Closed,
}

impl<C> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl<C: Send + Sync> Connection<C> {
    /// Nothing is connected yet.
    pub(super) fn new(connect: impl Fn() -> BoxFuture<'static, Result<C>> + Send + Sync + 'static) -> Self {
        Self { connect: Box::new(connect), state: Mutex::new(State::Unopened) }
    }

    /// The client, connecting if there is none yet.
    pub(super) async fn client(&self) -> Result<Arc<C>> {
        let mut state = self.state.lock().await;
        match &*state {
            State::Open(client) => Ok(Arc::clone(client)),
            State::Closed => Err(Error::internal("the table's connection to RocketMQ is closed already")),
            State::Unopened => self.open(&mut state).await,
        }
    }

    /// After `client` failed with `error`: pauses, unless patience is at its end, and gives the client to try next.
    pub(super) async fn again(&self, client: Arc<C>, patience: &mut Patience, error: Error) -> Result<Arc<C>> {
        patience.pause(error).await?;
        Ok(if patience.is_worn() { self.renewed(client).await } else { client })
    }

    /// The client that took the place of `client`, or takes it now.
    async fn renewed(&self, client: Arc<C>) -> Arc<C> {
        let mut state = self.state.lock().await;
        match &*state {
            // One that cannot be made now may well be at the next try.
            State::Open(current) if Arc::ptr_eq(current, &client) => self.open(&mut state).await.unwrap_or(client),
            State::Open(renewed) => Arc::clone(renewed),
            State::Unopened | State::Closed => client,
        }
    }

    /// Takes the client out, to be closed; none is given out any more.
    pub(super) async fn close(&self) -> Option<Arc<C>> {
        match std::mem::replace(&mut *self.state.lock().await, State::Closed) {
            State::Open(client) => Some(client),
            State::Unopened | State::Closed => None,
        }
    }

    async fn open(&self, state: &mut State<C>) -> Result<Arc<C>> {
        let client = Arc::new((self.connect)().await?);
        *state = State::Open(Arc::clone(&client));
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_worn_client_is_replaced_once_for_all_who_use_it() {
        let made = Arc::new(AtomicU32::new(0));
        let connection = Connection::new(move || {
            let number = made.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { if number == 1 { Err(Error::transient("down")) } else { Ok(number) } })
        });
        let first = connection.client().await.unwrap();
        assert!(Arc::ptr_eq(&first, &connection.client().await.unwrap()));
        // The second cannot be made, the third can, and who still has the first gets it, too.
        assert_eq!(*connection.renewed(Arc::clone(&first)).await, 0);
        assert_eq!(*connection.renewed(Arc::clone(&first)).await, 2);
        assert_eq!(*connection.renewed(first).await, 2);
        assert_eq!(connection.close().await.as_deref(), Some(&2));
        assert!(connection.client().await.is_err());
    }
}
