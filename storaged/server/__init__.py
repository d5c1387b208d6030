"""The server: sockets, connections and their bounds; what is asked goes to `storaged.service`.

One event loop owns all connections. What only reads memory is answered on it at once; what touches
storage runs on threads (`workers`), and no thread waits for a client. `server` ties it together,
`connection` is one client, `dispatch` its calls, `uploads` and `downloads` its streams.
"""
