-- The end of every script on a pool, after time, shapes, pool, ledger, open, back, and the part that defines `answer`: reserve, look or usage.
--
-- KEYS[1]: the pool's state (see pool.lua). ARGV[1]: the pool's spec, ARGV[2]: the request, both as JSON (spec.rs and args.rs name the fields).
-- Gives what `reply` in pool.lua makes. Its first field is the outcome: 'open' (the answer is in it), 'edges' (the caller's calendar edges do not
-- fit), 'cold' or 'changed' (the history of the numbered limits is missing). Only with 'open' permits were given.

local args = cjson.decode(ARGV[2])
local p = new_pool(KEYS[1], cjson.decode(ARGV[1]), args)
read_state(p, args)
if not edges_fit(p) then return reply(p, 'edges', {}) end
if args.close then close_gate(p, args.close, args.channel) end
local missing = open(p, args)
save_state(p)
if missing then return reply_not_open(p, missing) end
prefetch(p, args)
take_back(p, args)
put_off(p, args.late)
load_counts(p, args.most)
local answered = answer(p, args)
flush(p)
return answered
