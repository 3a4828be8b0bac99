//! Operations that a FUSE thread begins and the mount's runtime ends.
//!
//! The calling thread polls once, so that a request to a server leaves at once. What has to
//! wait then becomes a task only when it is woken: the runtime's thread, which hears of
//! the answer anyway, is not woken before just to find that there is none yet.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

enum State {
    /// The calling thread has it, or nobody any more.
    Elsewhere { woken: bool },
    /// It waits to be woken.
    Waiting(Task),
}

/// One operation that was polled outside of the runtime.
struct Begun {
    runtime: Handle,
    state: Mutex<State>,
}

impl Wake for Begun {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // What is woken becomes a task, which has wakers of its own: this one is done.
        let state = std::mem::replace(&mut *self.state.lock(), State::Elsewhere { woken: true });
        if let State::Waiting(task) = state {
            self.runtime.spawn(task);
        }
    }
}

/// Polls `operation` on this thread, within `runtime`. Its result, or what is left of it, for [`Left::go_on`].
pub(super) fn begin<F: Future>(runtime: &Handle, operation: Pin<&mut F>) -> Result<F::Output, Left> {
    let begun = Arc::new(Begun { runtime: runtime.clone(), state: Mutex::new(State::Elsewhere { woken: false }) });
    let polled = {
        let _runtime = runtime.enter();
        operation.poll(&mut Context::from_waker(&Waker::from(begun.clone())))
    };
    match polled {
        Poll::Ready(result) => Ok(result),
        Poll::Pending => Err(Left(begun)),
    }
}

/// An operation that could not be ended at once.
#[must_use]
pub(super) struct Left(Arc<Begun>);

impl Left {
    /// Goes on with it as `task`, which contains it, once it is woken.
    pub(super) fn go_on(self, task: impl Future<Output = ()> + Send + 'static) {
        let Self(begun) = self;
        let task: Task = Box::pin(task);
        let mut state = begun.state.lock();
        match *state {
            State::Elsewhere { woken: true } => {
                drop(state);
                begun.runtime.spawn(task);
            }
            _ => *state = State::Waiting(task),
        }
    }

    /// Goes on at once: `task` waits for more than the operation did when it was polled.
    pub(super) fn go_on_now(self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    /// Waits for `asked` and tells `ended`.
    fn operation(asked: oneshot::Receiver<u32>) -> Pin<Box<impl Future<Output = u32>>> {
        Box::pin(async move { asked.await.unwrap() })
    }

    #[test]
    fn what_need_not_wait_ends_on_the_calling_thread() {
        let runtime = runtime();
        let (answer, asked) = oneshot::channel();
        answer.send(7).unwrap();
        assert!(matches!(begin(runtime.handle(), operation(asked).as_mut()), Ok(7)));
    }

    #[test]
    fn it_goes_on_when_it_is_woken_before_or_after_it_was_put_down() {
        let runtime = runtime();
        for before in [true, false] {
            let (answer, asked) = oneshot::channel();
            let (ended, end) = mpsc::channel();
            let mut operation = operation(asked);
            let Err(left) = begin(runtime.handle(), operation.as_mut()) else { panic!("nobody has answered") };
            let mut answer = Some(answer);
            if before {
                answer.take().unwrap().send(7).unwrap();
            }
            left.go_on(async move { ended.send(operation.await).unwrap() });
            if let Some(answer) = answer {
                assert!(end.try_recv().is_err(), "it was not woken");
                answer.send(7).unwrap();
            }
            assert_eq!(end.recv().unwrap(), 7);
        }
    }

    #[test]
    fn a_task_that_waits_for_more_is_polled_at_once() {
        let runtime = runtime();
        let (_answer, asked) = oneshot::channel();
        let (ended, end) = mpsc::channel();
        let mut operation = operation(asked);
        let Err(left) = begin(runtime.handle(), operation.as_mut()) else { panic!("nobody has answered") };
        left.go_on_now(async move { ended.send(()).unwrap() });
        end.recv().unwrap();
    }
}
