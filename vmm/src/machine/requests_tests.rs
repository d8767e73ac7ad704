use std::fs::File;
use std::io::{Read, Write};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;

/// The reading end of a pipe, which is at its end when all copies of the writing end are closed, and that.
fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), writer.into())
}

fn send(stream: &UnixStream, bytes: &str, descriptors: &[&OwnedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(|one| one.as_raw_fd()).collect();
    assert_eq!(stream.send_with_fds(&[bytes.as_bytes()], &numbers).unwrap(), bytes.len());
}

fn line(requests: &mut Requests<'_>) -> String {
    String::from_utf8(requests.next().unwrap().unwrap().bytes).unwrap()
}

fn is_closed(mut reader: &File) -> bool {
    reader.read(&mut [0]).unwrap() == 0
}

#[test]
fn lines_are_as_long_as_they_are() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut requests = Requests::new(&server);
    client.write_all(b"one\n\ntwo").unwrap();
    assert_eq!((line(&mut requests), line(&mut requests)), ("one\n".into(), "\n".into()));
    client.write_all(b" and a half\nthe last").unwrap();
    assert_eq!(line(&mut requests), "two and a half\n");
    drop(client);
    assert_eq!(line(&mut requests), "the last");
    assert!(requests.next().unwrap().is_none());
    for (len, cut) in [(LINE_MAX - 1, false), (LINE_MAX, true), (LINE_MAX + PIECE, true)] {
        let (mut client, server) = UnixStream::pair().unwrap();
        let text = "x".repeat(len) + "\n";
        let writer = std::thread::spawn(move || client.write_all(text.as_bytes()).map(|()| client));
        let found = Requests::new(&server).next().unwrap().unwrap();
        assert_eq!((found.bytes.len(), found.cut), (LINE_MAX, cut), "{len}");
        drop(server);
        let _ = writer.join().unwrap();
    }
}

#[test]
fn descriptors_come_with_their_request() {
    let (client, server) = UnixStream::pair().unwrap();
    let mut requests = Requests::new(&server);
    let (first, writer) = pipe();
    // Joined by the kernel with what came before, and in two parts.
    send(&client, "before\n", &[]);
    send(&client, "with ", &[&writer]);
    send(&client, "it\n", &[]);
    drop(writer);
    assert_eq!(line(&mut requests), "before\n");
    requests.answered();
    assert_eq!(line(&mut requests), "with it\n");
    let taken = requests.given.take().unwrap();
    assert_eq!(taken.len(), 1);
    let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", taken[0].as_raw_fd())).unwrap();
    assert!(flags.contains("flags:\t02000001"), "closed by who runs another program: {flags}");
    drop(taken);
    assert!(is_closed(&first));
    // A blank before the request, as some send it.
    let (second, writer) = pipe();
    send(&client, " ", &[&writer]);
    send(&client, "then\n", &[]);
    drop(writer);
    assert_eq!(line(&mut requests), " then\n");
    // Which does not want it.
    requests.answered();
    assert!(is_closed(&second));
    assert!(requests.given.take().unwrap().is_empty());
    // Without a request at all.
    let (third, writer) = pipe();
    send(&client, "x", &[&writer]);
    drop((writer, client));
    assert_eq!(line(&mut requests), "x");
    assert!(requests.next().unwrap().is_none());
    drop(requests);
    assert!(is_closed(&third));
}

#[test]
fn too_many_descriptors_are_closed_and_told_of() {
    let (client, server) = UnixStream::pair().unwrap();
    let mut requests = Requests::new(&server);
    let (reader, writer) = pipe();
    send(&client, "all\n", &[&writer; GIVEN_MAX]);
    assert_eq!(line(&mut requests), "all\n");
    assert_eq!(requests.given.take().unwrap().len(), GIVEN_MAX);
    // The kernel had more than there was room for (MSG_CTRUNC); they came piece by piece; the most that the kernel takes.
    for counts in [&[GIVEN_MAX + 1][..], &[GIVEN_MAX, 1], &[9, 9], &[253]] {
        for count in counts {
            send(&client, " ", &vec![&writer; *count]);
        }
        send(&client, "more\n", &[]);
        assert!(line(&mut requests).ends_with("more\n"));
        let refused = requests.given.take().unwrap_err().to_string();
        assert!(
            refused.starts_with("more descriptors came than are taken with one request (16)"),
            "{refused}"
        );
        requests.answered();
    }
    drop(writer);
    assert!(is_closed(&reader));
    send(&client, "next\n", &[]);
    assert_eq!(line(&mut requests), "next\n");
    assert!(requests.given.take().unwrap().is_empty());
}
