"""What every gRPC service of Pagoda does alike: server set-up, error statuses, arrays in messages."""
