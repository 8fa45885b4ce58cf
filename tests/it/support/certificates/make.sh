#!/bin/sh
# Makes the certificates of the tests, good for a hundred years: an authority, a vendor at 127.0.0.1, two of our own, and a stranger's.
# Their keys are for tests only and prove nothing to anybody.
set -eu
cd "$(dirname "$0")"

authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=$1" \
        -addext "basicConstraints=critical,CA:TRUE" -keyout "$1.key" -out "$1.pem" 2>/dev/null
}

signed() { # NAME EXTENSIONS
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf '%s\n' "$2" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA authority.pem -CAkey authority.key -CAcreateserial -days 36500 -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}

authority authority
authority stranger
signed vendor "subjectAltName=IP:127.0.0.1"
signed client-1 "extendedKeyUsage=clientAuth"
signed client-2 "extendedKeyUsage=clientAuth"
rm -f authority.srl authority.key
