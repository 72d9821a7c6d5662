//! Sockets and their pairs.
use crate::tls::{self, Broken};
use crate::Settings;
use rustls::server::UnbufferedServerConnection;
use rustls::ServerConfig;
use slab::Slab;
use std::io;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

const DOWN: u64 = 1 << 32;
const UP: u64 = 2 << 32;
const PIECE: usize = 256 * 1024;
/// Sealed bytes that may wait for a slow client before its upstream is left unread.
const MOST_WAITING: usize = 256 * 1024;

struct Pair {
    fd: i32,
    tls: UnbufferedServerConnection,
    /// The start of a record whose end is not here yet.
    part: Vec<u8>,
    out: Vec<u8>,
    up: Option<i32>,
    up_out: Vec<u8>,
    stalled: bool,
}

struct Relay {
    settings: &'static Settings,
    tls: Arc<ServerConfig>,
    epoll: i32,
    pairs: Slab<Pair>,
    plain: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

pub fn run(settings: &'static Settings, tls: Arc<ServerConfig>) {
    let listener = listen(settings.listen);
    let epoll = unsafe { libc::epoll_create1(0) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, listener, &mut event) };
    let mut relay = Relay { settings, tls, epoll, pairs: Slab::new(), plain: Vec::with_capacity(PIECE), spare: vec![] };
    let mut piece = vec![0u8; PIECE];
    let mut events: Vec<libc::epoll_event> = vec![unsafe { std::mem::zeroed() }; 256];
    loop {
        let n = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 256, -1) };
        for event in &events[..n.max(0) as usize] {
            let (id, flags) = (event.u64, event.events);
            let index = (id & 0xffff_ffff) as usize;
            let readable = flags & !(libc::EPOLLOUT as u32) != 0;
            if id == 0 {
                relay.accept(listener);
            } else if relay.pairs.contains(index) && relay.ready(index, id & DOWN != 0, readable, &mut piece).is_err() {
                relay.close(index);
            }
        }
    }
}

impl Relay {
    fn accept(&mut self, listener: i32) {
        loop {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
            if fd < 0 {
                return;
            }
            let one = 1i32;
            unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &one as *const _ as _, 4) };
            let index = self.pairs.insert(Pair {
                fd,
                tls: UnbufferedServerConnection::new(self.tls.clone()).unwrap(),
                part: vec![],
                out: vec![],
                up: None,
                up_out: vec![],
                stalled: false,
            });
            watch(self.epoll, fd, DOWN | index as u64);
        }
    }

    fn ready(&mut self, index: usize, is_down: bool, readable: bool, piece: &mut [u8]) -> Result<(), Broken> {
        if !is_down {
            self.send_up(index)?;
            return if readable { self.read_up(index, piece) } else { Ok(()) };
        }
        self.send_down(index)?;
        if self.pairs[index].stalled {
            self.read_up(index, piece)?;
        }
        if readable { self.read_down(index, piece) } else { Ok(()) }
    }

    fn read_down(&mut self, index: usize, piece: &mut [u8]) -> Result<(), Broken> {
        loop {
            let Some(n) = receive(self.pairs[index].fd, piece)? else { return Ok(()) };
            self.open(index, &mut piece[..n])?;
            self.send_down(index)?;
            self.send_up(index)?;
            if n < piece.len() {
                return Ok(());
            }
        }
    }

    /// Records from the client, opened and laid out for the upstream.
    fn open(&mut self, index: usize, data: &mut [u8]) -> Result<(), Broken> {
        let pair = &mut self.pairs[index];
        let mut joined;
        let records: &mut [u8] = if pair.part.is_empty() {
            data
        } else {
            pair.part.extend_from_slice(data);
            joined = std::mem::take(&mut pair.part);
            &mut joined
        };
        self.plain.clear();
        let (used, closing) = tls::decrypt(&mut pair.tls, records, &mut self.plain, &mut pair.out)?;
        if closing {
            return Err(Broken);
        }
        pair.part.extend_from_slice(&records[used..]);
        if !self.plain.is_empty() {
            pair.up_out.extend_from_slice(&self.plain);
            if pair.up.is_none() {
                let fd = connect(self.settings.upstream).map_err(|_| Broken)?;
                pair.up = Some(fd);
                watch(self.epoll, fd, UP | index as u64);
            }
        }
        Ok(())
    }

    fn read_up(&mut self, index: usize, piece: &mut [u8]) -> Result<(), Broken> {
        loop {
            let pair = &mut self.pairs[index];
            let Some(up) = pair.up else { return Ok(()) };
            pair.stalled = pair.out.len() > MOST_WAITING;
            if pair.stalled {
                return Ok(()); // resumed when the client's socket drains
            }
            let Some(n) = receive(up, piece)? else { return Ok(()) };
            if pair.out.capacity() == 0 {
                pair.out = self.spare.pop().unwrap_or_default();
            }
            tls::encrypt(&mut pair.tls, &piece[..n], &mut pair.out)?;
            self.send_down(index)?;
            if n < piece.len() {
                return Ok(());
            }
        }
    }

    fn send_up(&mut self, index: usize) -> Result<(), Broken> {
        let pair = &mut self.pairs[index];
        match pair.up {
            Some(up) => send(up, &mut pair.up_out),
            None => Ok(()),
        }
    }

    fn send_down(&mut self, index: usize) -> Result<(), Broken> {
        let pair = &mut self.pairs[index];
        send(pair.fd, &mut pair.out)?;
        // An idle connection holds no buffer.
        if pair.out.is_empty() && pair.out.capacity() > 0 && self.spare.len() < 256 {
            self.spare.push(std::mem::take(&mut pair.out));
        }
        Ok(())
    }

    fn close(&mut self, index: usize) {
        let pair = self.pairs.remove(index);
        unsafe { libc::close(pair.fd) };
        if let Some(up) = pair.up {
            unsafe { libc::close(up) };
        }
    }
}

/// None: nothing there now.
fn receive(fd: i32, piece: &mut [u8]) -> Result<Option<usize>, Broken> {
    let n = unsafe { libc::recv(fd, piece.as_mut_ptr() as _, piece.len(), 0) };
    match n {
        1.. => Ok(Some(n as usize)),
        0 => Err(Broken),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => Ok(None),
        _ => Err(Broken),
    }
}

fn send(fd: i32, out: &mut Vec<u8>) -> Result<(), Broken> {
    if out.is_empty() {
        return Ok(());
    }
    let n = unsafe { libc::send(fd, out.as_ptr() as _, out.len(), libc::MSG_NOSIGNAL) };
    match n {
        0.. if n as usize == out.len() => out.clear(),
        0.. => drop(out.drain(..n as usize)),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {}
        _ => return Err(Broken),
    }
    Ok(())
}

fn listen(address: SocketAddr) -> i32 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into_raw_fd()
}

fn connect(address: SocketAddr) -> io::Result<i32> {
    let stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into_raw_fd())
}

fn watch(epoll: i32, fd: i32, id: u64) {
    let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
    let mut event = libc::epoll_event { events, u64: id };
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) };
}
