-- Counts of a vendor's jobs. ARGV: now, streams.
-- Gives: waiting, open, live, leased, when a call was last settled (ms; 0: not known), bytes, then the ids at the head of the streams.
local streams = tonumber(ARGV[2])
local found = redis.call('HMGET', counts, 'waiting', 'open', 'live', 'settled_at', 'bytes')
local answer = {found[1] or '0', found[2] or '0', found[3] or '0', '0', found[4] or '0', found[5] or '0'}
if not epoch() then return answer end
local all_leased = 0
for stream = 0, streams - 1 do
  local here, _, leased = waiting(stream)
  all_leased = all_leased + leased
  local is_empty = here + leased == 0
  for _, entry in ipairs(is_empty and {} or redis.call('XRANGE', key_of(stream, 'jobs'), '-', '+', 'COUNT', 1)) do
    answer[#answer + 1] = entry[2][2]
  end
end
answer[4] = tostring(all_leased)
return answer
