-- The end of every script on a pool, after time, shapes, pool, ledger, open, back, and the part that defines `answer`: reserve, look or usage.

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
