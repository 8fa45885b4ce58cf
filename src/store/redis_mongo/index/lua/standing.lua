-- What is known of the lines of a vendor. ARGV: now, lines.
-- Gives: what each priority has paid for its turns (-1: it is idle), then how many jobs of each line are leased. Nothing while the index is lost.
local lines = tonumber(ARGV[2])
if not epoch() then return {} end
local answer = redis.call('HMGET', state, 'spent0', 'spent1', 'spent2')
for p = 1, 3 do answer[p] = tonumber(answer[p] or -1) end
for line = 0, 5 do
  local _, _, leased = 0, 0, 0
  if line < lines then _, _, leased = waiting(line) end
  answer[#answer + 1] = leased
end
return answer
