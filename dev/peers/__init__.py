"""The programs that Switchroom is compared with; it never imports them."""
